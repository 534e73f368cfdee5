"""Publisher processes that drain one full outbox."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from benchmarks.app import names
from benchmarks.growth.data import Row, begin, record, scalar
from benchmarks.growth.workers import await_all, processes, published_for


def measure(counts: Sequence[int], events: int) -> Iterator[Row]:
    """So many processes, with one subscription whose worker is away."""
    os.environ["COS_EVENTS_QUEUE_DEPTH"] = "1000000"
    for count in counts:
        begin(*names(1))
        with processes(publishers=count, subscriptions=[]) as frozen:
            with frozen():
                record(events)
            await_all(lambda: events - scalar("SELECT count(published_at) FROM cos_events.outbox"))
        # A relay looks once a second: what it waits for is not the drain.
        spent = published_for("max(published_at)")
        yield {"publishers": count, "events/s": events / spent}
    del os.environ["COS_EVENTS_QUEUE_DEPTH"]
