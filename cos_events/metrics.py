"""`GET /metrics`: what processes have counted, and what PostgreSQL and the broker know."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from cos_events import broker, telemetry
from cos_events.error_text import one_line
from cos_events.errors import BrokerAway, ConfigurationError
from cos_events.process import forks
from cos_events.store.engine import get_watching_engine
from cos_events.store.lag import Lag, lags
from cos_events.store.ledger import Backlog, backlog
from cos_events.store.models import UNFINISHED
from cos_events.telemetry import names
from cos_events.topology import PUBLISH_QUEUE

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

logger = logging.getLogger(__name__)

STATEMENT_TIMEOUT_MS = 5_000
"""Milliseconds that a scrape lets PostgreSQL count."""


def render() -> tuple[bytes, str]:
    """All metrics in Prometheus's text format, and its content type.

    The counted ones are this process's, or those of all processes that share their counts
    (`PROMETHEUS_MULTIPROC_DIR`); the others are read at this moment. A PostgreSQL or a broker that
    is down shows in `cos_events_up`, and costs a bounded wait.

    Raises:
        ConfigurationError: prometheus-client is not installed.
    """
    registry = _registry()
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest  # noqa: PLC0415 - an extra

    return generate_latest(registry), CONTENT_TYPE_LATEST


def serve(listen: str) -> None:
    """Serve scrapes from a thread of this process, for it and the children that it will fork.

    Args:
        listen: `host:port`.

    Raises:
        ConfigurationError: prometheus-client is not installed, or the port is taken.
    """
    share_counts()
    registry = _registry()
    from prometheus_client import start_http_server  # noqa: PLC0415 - an extra

    host, _, port = listen.rpartition(":")
    try:
        start_http_server(int(port), host, registry)
    except OSError as error:
        raise ConfigurationError(
            f"COS_EVENTS_METRICS_LISTEN={listen!r}: cannot be listened on: {error.strerror}"
        ) from error


def share_counts() -> None:
    """Share counts with the children that this process will have: one scrape shows them all."""
    if telemetry.SHARED not in os.environ:
        folder = tempfile.mkdtemp(prefix="cos-events-metrics-")
        atexit.register(_remove, folder, os.getpid())
        telemetry.share_counts(folder)


class _Books:
    """Prometheus's collector of what PostgreSQL and the broker know; reads them at each scrape."""

    def collect(self) -> Iterator[Metric]:
        """One family for each of these metrics; one whose server is down has no samples."""
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - an extra

        families = {
            each: GaugeMetricFamily(each.name, each.help, labels=each.labels) for each in _READ
        }
        with forks.wait():
            for metric, labels, value in _read():
                families[metric].add_metric(labels, value)
        yield from families.values()


_READ = (
    *(names.UP, names.OUTBOX_ROWS, names.OUTBOX_OLDEST, names.DELIVERIES, names.LAG),
    *(names.LAG_SECONDS, names.PAUSED, names.HOLDING, names.QUEUE_DEPTH),
)


def _read() -> Iterator[tuple[names.Metric, Sequence[str], float]]:
    subscriptions: list[Lag] = []
    try:
        backlog, subscriptions = _books()
    except SQLAlchemyError as error:
        logger.debug("PostgreSQL cannot be read: %s", one_line(error))
        yield names.UP, ["postgresql"], 0
    else:
        yield names.UP, ["postgresql"], 1
        yield names.OUTBOX_ROWS, [], backlog.rows
        yield names.OUTBOX_OLDEST, [], backlog.oldest_seconds
    for each in subscriptions:
        name = each.subscription
        for state in UNFINISHED:
            yield names.DELIVERIES, [name, state], each.states.get(state, 0)
        yield names.LAG, [name], each.events
        yield names.LAG_SECONDS, [name], each.seconds
        yield names.PAUSED, [name], each.paused
        yield names.HOLDING, [name], each.holding
    queues = [PUBLISH_QUEUE, *(each.subscription for each in subscriptions)]
    try:
        depths = broker.queue_depths(queues)
    except BrokerAway as error:
        logger.debug("%s", error)
        yield names.UP, ["broker"], 0
        return
    yield names.UP, ["broker"], 1
    for queue in queues:
        yield names.QUEUE_DEPTH, [queue], depths.get(queue, 0)


def _books() -> tuple[Backlog, list[Lag]]:
    with get_watching_engine().begin() as connection:
        connection.execute(text(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}"))
        return backlog(connection), lags(connection)


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _registry() -> CollectorRegistry:
    try:
        from prometheus_client import REGISTRY, CollectorRegistry  # noqa: PLC0415 - an extra
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            "metrics need prometheus-client: pip install 'cos-events[metrics]'"
        ) from error
    registry = CollectorRegistry()
    registry.register(_Books())
    if telemetry.SHARED in os.environ:
        collector: Any = MultiProcessCollector
        collector(registry)
    else:
        registry.register(REGISTRY)
    return registry
