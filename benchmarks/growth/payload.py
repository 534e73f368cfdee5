"""Bytes of an event's data: from a full outbox to a subscription's handler."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from benchmarks.app import SUBSCRIPTIONS, names
from benchmarks.growth.data import Row, begin, record
from benchmarks.growth.workers import await_delivered, processes


def measure(sizes: Sequence[int], bytes_in_all: int) -> Iterator[Row]:
    """Events of so many bytes; as many of them as make so many bytes in all."""
    wanted = names(1)
    os.environ[SUBSCRIPTIONS] = "1"
    begin(*wanted)
    with processes(publishers=1, subscriptions=wanted) as frozen:
        for size in sizes:
            events = min(8_000, bytes_in_all // size)
            begin(*wanted)
            with frozen():
                record(events, size)
            spent = await_delivered(events)
            yield {
                "bytes": size,
                "events": events,
                "handled, events/s": events / spent,
                "MB/s": events * size / spent / 1e6,
            }
