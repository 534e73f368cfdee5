"""Events that the one subscription has had long ago."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from statistics import median
from uuid import UUID

from sqlalchemy import text

from benchmarks.growth.data import ENVELOPES, Row, begin, milliseconds, record, scalar
from cos_events.broadcast import BrokerWire, make_broadcaster, make_wire
from cos_events.feeder import Feeder
from cos_events.publisher import BATCH_SIZE, Publisher, publish_once
from cos_events.redelivery import Redelivery
from cos_events.retention import Retention
from cos_events.settings import get_settings
from cos_events.store import deliveries, outbox
from cos_events.store.engine import get_autocommit_engine, get_engine, get_relaxed_engine
from cos_events.store.outbox import Pending

WEEK = 7 * 86_400.0
CHUNK = 100_000

HISTORY = text(f"""
    WITH past AS (
        INSERT INTO cos_events.outbox
            (event_id, source_module, event_type, envelope, recorded_at, published_at)
        SELECT id, 'cc', 'event_log', envelope, began, began
        FROM ({ENVELOPES}) AS made, (SELECT clock_timestamp() - interval '1 hour' AS began)
        RETURNING id, event_id)
    INSERT INTO cos_events.delivery (subscription, event_id, outbox_id, state, attempts)
    SELECT 'growth_0', event_id, id, 'delivered', 1 FROM past
""")  # noqa: S608 - ours
NEWEST = "SELECT event_id FROM cos_events.outbox ORDER BY id DESC LIMIT 100"
FORGET_NEW = """
    DELETE FROM cos_events.outbox WHERE id > (
        SELECT settled_through FROM cos_events.subscription);
    SELECT 1
"""
FORGET_ONE = """
    DELETE FROM cos_events.delivery WHERE event_id = (
        SELECT event_id FROM cos_events.outbox ORDER BY id LIMIT 1);
    UPDATE cos_events.subscription SET settled_through = 0;
    SELECT 1
"""


def measure(sizes: Sequence[int]) -> Iterator[Row]:
    """A batch's claim, one event's publication, the relay; after so many events each."""
    publisher = Publisher(get_relaxed_engine(), make_broadcaster())
    for size in sizes:
        begin("growth_0")
        for made in range(0, size, CHUNK):
            with get_engine().begin() as connection:
                connection.execute(HISTORY, {"count": min(CHUNK, size - made), "size": 200})
        scalar("ANALYZE cos_events.outbox, cos_events.delivery; SELECT 1")
        with closing(make_wire()) as wire:
            sweep = sweeping(wire)
            # The watermark goes over what is new, once.
            first: list[float] = []
            while scalar("SELECT settled_through FROM cos_events.subscription") < size:
                first += milliseconds(sweep, 1)
            sweeps = milliseconds(sweep, 60)
            retained = milliseconds(lambda: Retention(get_engine(), WEEK).sweep(), 3)
            record(BATCH_SIZE)
            claims = milliseconds(claim, 20)
            with get_engine().connect() as connection:
                waiting = iter(outbox.claim(connection, BATCH_SIZE))
                fresh = connection.scalars(text(NEWEST)).all()
            ledger = milliseconds(partial(look_up, fresh), 50)
            publish = milliseconds(partial(publish_next, publisher, waiting), 100)
            scalar(FORGET_NEW)
            scalar(FORGET_ONE)
            stuck = milliseconds(sweeping(wire), 5)
        yield {
            "events": size,
            "claim of 500, ms": median(claims),
            "worst claim": max(claims),
            "ledger of 100, ms": median(ledger),
            "worst ledger": max(ledger),
            "publish one, ms": median(publish),
            "worst publish": max(publish),
            "idle sweep, ms": median(sweeps),
            "worst sweep": max(sweeps),
            "sweep over what is new": median(first),
            "the first not had": median(stuck),
            "retention round": median(retained),
        }


def sweeping(wire: BrokerWire) -> Callable[[], object]:
    """What a relay does each second, but for the retention; nothing is ever overdue."""
    redelivery = Redelivery(get_engine(), wire, lost_after=WEEK)
    feeder = Feeder(get_engine(), wire, get_settings().queue_depth, lost_after=WEEK)
    return lambda: (publish_once(), feeder.sweep(), redelivery.sweep())


def claim() -> None:
    """Lock a full batch, and let go of it."""
    with get_relaxed_engine().connect() as connection:
        assert len(outbox.claim(connection, BATCH_SIZE)) == BATCH_SIZE


def publish_next(publisher: Publisher, waiting: Iterator[Pending]) -> None:
    """Publish one event of those that wait."""
    publisher.publish([next(waiting).id])


def look_up(ids: Sequence[UUID]) -> None:
    """What a worker asks of the ledger for a batch."""
    with get_autocommit_engine().connect() as connection:
        assert all(deliveries.due(connection, "growth_0", ids, 1).values())
