"""What is counted in the process where it happens; nothing at all without prometheus-client.

The metrics are in prometheus-client's default registry: an application that exposes it shows them
too. They are created on first use: until then a worker can still decide that its processes share
their counts.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from functools import cache
from typing import Any

try:
    import prometheus_client
    from prometheus_client import values as client_values
except ImportError:
    _INSTALLED = False
else:
    _INSTALLED = True

from cos_events.error_text import one_line
from cos_events.telemetry.names import BUCKETS, Metric

logger = logging.getLogger(__name__)

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable with the folder through which processes share their counts."""


def count(metric: Metric, *labels: str, by: float = 1) -> None:
    """Add to a counter; its labels in the order of the table. Never raises."""
    if by:
        _tell(metric, labels, "inc", [by])


def observe(metric: Metric, *labels: str, seconds: Iterable[float]) -> None:
    """Add these to a histogram. Never raises."""
    _tell(metric, labels, "observe", seconds)


def show(metric: Metric, *labels: str, value: float) -> None:
    """Set a gauge; if several processes set it, the latest value counts. Never raises."""
    _tell(metric, labels, "set", [value])


def share_counts(folder: str) -> None:
    """Share counts with the children of this process, through a folder that is theirs alone.

    Call it before anything is counted, and before a child is forked.
    """
    # The client reads the variable only when it is imported; the form of its values is private to
    # it. `tests/integration/telemetry/test_metrics.py` counts in a pool's children.
    os.environ[SHARED] = folder
    if _INSTALLED:
        shared: Any = client_values
        shared.ValueClass = shared.MultiProcessValue()


def _tell(metric: Metric, labels: tuple[str, ...], what: str, values: Iterable[float]) -> None:
    if not _INSTALLED:
        return
    try:
        made = _made(metric)
        tell = getattr(made.labels(*labels) if labels else made, what)
        for each in values:
            tell(each)
    except Exception as error:  # noqa: BLE001 - what it counts has happened: nobody may fail by it
        _complain(metric, one_line(error))


_lock = threading.Lock()
_metrics: dict[Metric, Any] = {}


def _made(metric: Metric) -> Any:
    if (made := _metrics.get(metric)) is not None:
        return made
    with _lock:
        if metric not in _metrics:
            _metrics[metric] = _make(metric)
        return _metrics[metric]


def _make(metric: Metric) -> Any:
    named = metric.name, metric.help, metric.labels
    match metric.kind:
        case "counter":
            return prometheus_client.Counter(*named)
        case "histogram":
            return prometheus_client.Histogram(*named, buckets=BUCKETS)
        case "gauge":
            return prometheus_client.Gauge(*named, multiprocess_mode="mostrecent")


@cache
def _complain(metric: Metric, why: str) -> None:
    logger.warning("%s cannot be counted: %s", metric.name, why)
