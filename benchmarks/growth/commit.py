"""Events in a transaction of the application, and what the hook costs it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from statistics import median

from benchmarks.app import names
from benchmarks.growth.data import Row, begin
from cos_events.cli.bench.application import Application
from cos_events.store.engine import get_engine


def measure(sizes: Sequence[int], seconds: float) -> Iterator[Row]:
    """So many events in one transaction; nobody publishes meanwhile."""
    begin(*names(1))
    with closing(Application(get_engine(), 1_000_000)) as application:
        application.commit("cc", range(10))
        for size in sizes:
            costs = application.hook_costs["bus"]
            costs.clear()
            begun = time.monotonic()
            while time.monotonic() < begun + seconds or len(costs) < 5:
                application.commit("cc", range(size))
            rate = len(costs) * size / (time.monotonic() - begun)
            yield {
                "events a commit": size,
                "events/s": rate,
                "hook, µs": 1e6 * median(costs),
                "hook for each event, µs": 1e6 * median(costs) / size,
            }
