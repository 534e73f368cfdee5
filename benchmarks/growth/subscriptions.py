"""Subscriptions that all want every event."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from benchmarks.app import SUBSCRIPTIONS, names
from benchmarks.growth.data import Row, begin, record
from benchmarks.growth.workers import await_delivered, processes
from cos_events.broadcast import make_broadcaster
from cos_events.publisher import Publisher
from cos_events.store.engine import get_relaxed_engine

PUBLISHED = 4_000


def measure(counts: Sequence[int], copies: int) -> Iterator[Row]:
    """Copies a second of one publisher; deliveries of one worker, about so many for each count."""
    for count in counts:
        wanted, events = names(count), min(8_000, copies // count)
        os.environ[SUBSCRIPTIONS] = str(count)
        begin(*wanted)
        publisher = Publisher(get_relaxed_engine(), make_broadcaster())
        # What it does once for each queue is not what a copy costs.
        record(1)
        publisher.publish()
        record(PUBLISHED)
        begun = time.perf_counter()
        while publisher.publish():
            pass
        published = time.perf_counter() - begun
        begin(*wanted)
        with processes(publishers=1, subscriptions=wanted) as frozen:
            with frozen():
                record(events)
            spent = await_delivered(events * count)
        yield {
            "subscriptions": count,
            "events": events,
            "published, events/s": PUBLISHED / published,
            "published, copies/s": PUBLISHED * count / published,
            "handled, deliveries/s": events * count / spent,
        }
