"""The outbox that is measured: what is recorded there, and how it is asked."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from redis import Redis
from sqlalchemy import text

from cos_events.settings import get_settings
from cos_events.store import subscriptions
from cos_events.store.engine import get_engine
from cos_events.subscription import Subscription

Row = dict[str, float]
"""What was found at one size, by the name of the column."""

# Ids that begin with the time, as `record_event` makes them. A text of hex digits: PostgreSQL and
# the wire cannot make less of them, as they could of one letter.
TIME_ORDERED_ID = """
    encode(overlay(
        uuid_send(gen_random_uuid())
        placing substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
        FROM 1 FOR 6), 'hex')::uuid
"""
ENVELOPES = f"""
    SELECT id, json_build_object(
        'base_log_id', id, 'source_module', 'cc', 'timestamp', '2026-01-01T00:00:00.000000Z',
        'trace_id', '', 'request_id', '', 'event_type', 'event_log',
        'data', json_build_object('n', n, 'text', left(made.text, :size)))::text AS envelope
    FROM (
        SELECT {TIME_ORDERED_ID} AS id, n, (
            SELECT string_agg(md5(n::text || '.' || part::text), '')
            FROM generate_series(0, :size / 32) AS part
        ) AS text
        FROM generate_series(1, :count) AS n
    ) AS made
"""  # noqa: S608 - ours
RECORD = text(f"""
    INSERT INTO cos_events.outbox (event_id, source_module, event_type, envelope)
    SELECT id, 'cc', 'event_log', envelope FROM ({ENVELOPES}) AS made
""")  # noqa: S608 - ours


def record(count: int, size: int = 200) -> None:
    """So many events in the outbox, in one transaction."""
    with get_engine().begin() as connection:
        connection.execute(RECORD, {"count": count, "size": size})


def scalar(statement: str) -> Any:
    """What one statement says, in a transaction of its own."""
    with get_engine().begin() as connection:
        return connection.scalar(text(statement))


def begin(*wanted: str) -> None:
    """Nothing is left of what was before, and these subscriptions are known."""
    with get_engine().begin() as connection:
        connection.execute(
            text(
                "TRUNCATE cos_events.outbox, cos_events.delivery, cos_events.subscription "
                "RESTART IDENTITY"
            )
        )
        subscriptions.register(connection, [Subscription(name) for name in wanted])
    with Redis.from_url(get_settings().broker_url) as client:
        client.flushdb()


def milliseconds(act: Callable[[], object], rounds: int) -> list[float]:
    """How long it takes, each time."""
    spent = []
    for _ in range(rounds):
        begun = perf_counter()
        act()
        spent.append((perf_counter() - begun) * 1000)
    return spent
