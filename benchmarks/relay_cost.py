"""What one sweep of the relay costs with much history and nothing to do.

    python benchmarks/relay_cost.py --rows 10000 1000000

On a private PostgreSQL and Valkey; each row is published and delivered to one subscription. Prints
the median of the sweeps at each size, and their ratio to the first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import closing
from pathlib import Path

from sqlalchemy import text

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.stopped_subscription import NAME, RECORD
from cos_events.broadcast import make_wire
from cos_events.cli.servers import available
from cos_events.feeder import Feeder
from cos_events.publisher import publish_once
from cos_events.relay import Redelivery
from cos_events.store import subscriptions
from cos_events.store.engine import get_engine
from cos_events.store.migrations import upgrade
from cos_events.subscription import Subscription

SWEEPS = 60
DELIVER = text("""
    WITH published AS (
        UPDATE cos_events.outbox SET published_at = clock_timestamp() - interval '1 hour'
        WHERE published_at IS NULL RETURNING id, event_id)
    INSERT INTO cos_events.delivery (subscription, event_id, outbox_id, state, attempts)
    SELECT :name, event_id, id, 'delivered', 1 FROM published
""")


def grow(rows: int) -> None:
    """History of so many events, all delivered."""
    engine = get_engine()
    with engine.connect() as connection:
        have = connection.scalar(text("SELECT count(*) FROM cos_events.outbox")) or 0
    for start in range(have, rows, 10_000):
        with engine.begin() as connection:
            connection.execute(RECORD, {"count": min(10_000, rows - start)})
            connection.execute(DELIVER, {"name": NAME})


def sweeps() -> list[float]:
    """Milliseconds of each sweep: unpublished rows, held copies, lost ones."""
    spent = []
    with closing(make_wire()) as wire:
        feeder = Feeder(get_engine(), wire, 10_000, again=60)
        redelivery = Redelivery(get_engine(), wire, after=60)
        for _ in range(5):
            redelivery.sweep()
        for _ in range(SWEEPS):
            begun = time.perf_counter()
            publish_once()
            feeder.sweep()
            redelivery.sweep()
            spent.append((time.perf_counter() - begun) * 1000)
    return spent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    given = parser.parse_args()
    with available(None, None) as which:
        print(which)
        upgrade(get_engine())
        with get_engine().begin() as setup:
            subscriptions.register(setup, [Subscription(NAME)])
        first = None
        for size in given.rows:
            grow(size)
            measured = sweeps()
            median = statistics.median(measured)
            first = first or median
            print(
                f"{size:>10,} rows  median {median:6.2f} ms  worst {max(measured):6.2f} ms"
                f"  ratio {median / first:.2f}"
            )
