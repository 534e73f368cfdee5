"""A subscription is stopped while events go on: its queue stays at its depth, then all follow.

    python benchmarks/stopped_subscription.py --events 200000 [--broker-url amqp://…]

On private servers; RabbitMQ where a URL is given (use a virtual host of its own). Prints each
second the queue's depth, what is held, and the broker's memory where Redis is the broker.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from redis import Redis
from sqlalchemy import func, select, text

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])

from cos_events import broker
from cos_events.cli.processes import running, worker
from cos_events.cli.servers import available
from cos_events.settings import get_settings
from cos_events.store import subscriptions
from cos_events.store.engine import get_engine
from cos_events.store.migrations import upgrade
from cos_events.store.models import DeliveryRow
from cos_events.subscription import Subscription

NAME = "stopped"
RECORD = text("""
    INSERT INTO cos_events.outbox (event_id, source_module, event_type, envelope)
    SELECT id, 'cc', 'event_log', json_build_object(
        'base_log_id', id, 'source_module', 'cc', 'timestamp', '2026-01-01T00:00:00.000000Z',
        'trace_id', '', 'request_id', '', 'event_type', 'event_log',
        'data', json_build_object('n', n, 'text', repeat('x', 200)))::text
    FROM (SELECT gen_random_uuid() AS id, n FROM generate_series(1, :count) AS n) AS made
""")


def measure(events: int) -> None:
    """Record, publish without the subscriber, then with it."""
    engine = get_engine()
    upgrade(engine)
    with engine.begin() as connection:
        subscriptions.register(connection, [Subscription(NAME)])
    with tempfile.TemporaryDirectory() as folder:
        app = "benchmarks.app"
        with running(Path(folder), [worker("publisher", "publisher", "-A", app)]):
            begun = time.monotonic()
            for _ in range(events // 10_000):
                with engine.begin() as connection:
                    connection.execute(RECORD, {"count": 10_000})
            deepest = follow(lambda: published() == events)
            print(f"published {events:,} in {time.monotonic() - begun:.1f} s; deepest {deepest:,}")
            again = time.monotonic()
            with running(
                Path(folder), [worker("subscriber", "subscriber", NAME, "-A", app, "-c", "1")]
            ):
                deepest = follow(lambda: states().get("delivered", 0) == events)
            spent = time.monotonic() - again
            rate = events / spent
            print(f"delivered {events:,} in {spent:.1f} s ({rate:,.0f}/s); deepest {deepest:,}")
    print("states", states())


def follow(reached: object, seconds: float = 600) -> int:
    """Print a line each second until it is reached; returns the queue's greatest depth."""
    deepest, deadline = 0, time.monotonic() + seconds
    while not reached():  # type: ignore[operator]
        depth = broker.queue_depths([NAME]).get(NAME, 0)
        deepest = max(deepest, depth)
        print(
            f"depth {depth:>7,}  held {states().get('held', 0):>9,}  broker {memory()}", flush=True
        )
        if time.monotonic() > deadline:
            raise SystemExit("not reached in time")
        time.sleep(1)
    return deepest


def published() -> int:
    """How many rows went out."""
    with get_engine().connect() as connection:
        return connection.scalar(text("SELECT count(published_at) FROM cos_events.outbox")) or 0


def states() -> dict[str, int]:
    """How many deliveries are in which state."""
    query = select(DeliveryRow.state, func.count()).group_by(DeliveryRow.state)
    with get_engine().connect() as connection:
        return {state: count for state, count in connection.execute(query)}  # noqa: C416


def memory() -> str:
    """What the broker uses, where it is Redis."""
    if broker.on_rabbitmq():
        return "-"
    with Redis.from_url(get_settings().broker_url) as client:
        return f"{client.info('memory')['used_memory'] / 2**20:.1f} MiB"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--broker-url")
    given = parser.parse_args()
    with available(None, given.broker_url) as which:
        print(which)
        measure(given.events)
