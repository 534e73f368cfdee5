"""A subscription that nobody consumes, a relay, and what is said to have become of events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from kombu import Queue
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from cos_events import broker, record_event
from cos_events.broadcast import make_wire
from cos_events.broadcast.message import body_of
from cos_events.envelope import Envelope
from cos_events.redelivery import Redelivery
from cos_events.store import deliveries, redelivery, subscriptions
from cos_events.store.models import OutboxRow, SubscriptionRow
from cos_events.subscription import Subscription


@pytest.fixture
def subscription(
    broker_url: str, database: Engine, clean_queues: list[str], unique: Callable[[str], str]
) -> Subscription:
    """A subscription that nobody consumes, known to the database."""
    made = Subscription(unique("sub"), event_types=frozenset({"event_log"}))
    clean_queues.append(made.name)
    register(database, made)
    return made


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep looks at whatever is above a watermark."""
    monkeypatch.setattr(redelivery, "AHEAD", 1)


@pytest.fixture
def relay(database: Engine, subscription: Subscription) -> Iterator[Redelivery]:
    """A relay for which a minute is long."""
    return Redelivery(database, make_wire(), lost_after=60.0)


def register(engine: Engine, subscription: Subscription) -> None:
    with engine.begin() as connection:
        subscriptions.register(connection, [subscription])


def record(engine: Engine, count: int = 1, event_type: str = "event_log") -> list[UUID]:
    with Session(engine) as session, session.begin():
        return [record_event(session, event_type, {"n": n}) for n in range(count)]


def published(
    engine: Engine, event_ids: list[UUID], ago: float, recorded: float | None = None
) -> None:
    """Let these have been published so many seconds ago, by a publisher whose copies were lost.

    And recorded at that time, or so many seconds ago.
    """
    now = datetime.now(UTC)
    before = ago if recorded is None else recorded
    with engine.begin() as connection:
        connection.execute(
            update(OutboxRow)
            .where(OutboxRow.event_id.in_(event_ids))
            .values(
                recorded_at=now - timedelta(seconds=before),
                published_at=now - timedelta(seconds=ago),
            )
        )


def delivered(engine: Engine, subscription: Subscription, event_ids: list[UUID]) -> None:
    """Let its handler have had these, at the first attempt."""
    with engine.begin() as connection:
        deliveries.settle(connection, subscription.name, event_ids, 1)


def taken_from(name: str) -> list[tuple[UUID, int]]:
    """The events on a queue with the attempts that their messages tell, and empty it."""
    taken = []
    with broker.connect() as connection, connection.channel() as channel:
        queue = Queue(name)(channel)
        while message := queue.get(no_ack=True):
            retries = message.headers.get("retries", 0)
            body = message.decode()
            raw = body[0][0][0] if retries else body_of(message)
            taken.append((Envelope.decode(raw).base_log_id, retries))
    return taken


def watermark(engine: Engine, name: str) -> int:
    with engine.connect() as connection:
        query = select(SubscriptionRow.settled_through).where(SubscriptionRow.name == name)
        return connection.scalar(query) or 0


def envelope_of(engine: Engine, event_id: UUID) -> str:
    with engine.connect() as connection:
        query = select(OutboxRow.envelope).where(OutboxRow.event_id == event_id)
        return connection.scalars(query).one()
