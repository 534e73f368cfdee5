"""The books: for each subscription, what was committed against what it has had."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, text

from cos_events.store.models import DeliveryRow, OutboxRow, SubscriptionRow
from cos_events.store.redelivery import wanted


@dataclass(frozen=True, slots=True)
class Account:
    """One subscription's books. `committed` is the sum of the other five counts.

    Attributes:
        subscription: its name.
        committed: events that it is owed.
        delivered: had their effect.
        waiting: in the outbox, not yet published.
        in_flight: published a moment ago, or waiting for a retry.
        dead: waiting for a person among the dead letters.
        missing: published longer ago than the grace time, and nobody knows what became of them.
    """

    subscription: str
    committed: int
    delivered: int
    waiting: int
    in_flight: int
    dead: int
    missing: int


def verify(connection: Connection, grace: float) -> list[Account]:
    """The account of every subscription, by name.

    Args:
        connection: on the bus's database; all counts are of one moment.
        grace: seconds that a published event may take.
    """
    overdue = OutboxRow.published_at < func.now() - text("make_interval(secs => :grace)")
    no_row = DeliveryRow.event_id.is_(None)

    def count(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.count(OutboxRow.id).filter(condition)

    rows = connection.execute(
        select(
            SubscriptionRow.name,
            func.count(OutboxRow.id),
            count(DeliveryRow.state == "delivered"),
            count(and_(no_row, OutboxRow.published_at.is_(None))),
            count(or_(DeliveryRow.state == "retrying", and_(no_row, ~overdue))),
            count(DeliveryRow.state == "dead"),
            count(and_(no_row, overdue)),
        )
        .outerjoin(
            OutboxRow,
            and_(OutboxRow.id > SubscriptionRow.starts_after, wanted()),
        )
        .outerjoin(
            DeliveryRow,
            and_(
                DeliveryRow.subscription == SubscriptionRow.name,
                DeliveryRow.event_id == OutboxRow.event_id,
            ),
        )
        .group_by(SubscriptionRow.name)
        .order_by(SubscriptionRow.name),
        {"grace": grace},
    )
    return [Account(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in the outbox: how many rows, and the age of the oldest in seconds."""

    rows: int
    oldest_seconds: float


def backlog(connection: Connection) -> Backlog:
    """The outbox's unpublished rows; cheap, however many are published."""
    age = func.extract("epoch", func.now() - func.min(OutboxRow.recorded_at))
    rows, oldest = connection.execute(
        select(func.count(), func.coalesce(age, 0)).where(OutboxRow.published_at.is_(None))
    ).one()
    return Backlog(rows, max(0.0, round(float(oldest), 3)))


def unfinished(connection: Connection) -> dict[str, dict[str, int]]:
    """How many deliveries of each subscription are `retrying` and `dead`; cheap."""
    rows = connection.execute(
        select(DeliveryRow.subscription, DeliveryRow.state, func.count())
        .where(DeliveryRow.state.in_(["held", "retrying", "dead"]))
        .group_by(DeliveryRow.subscription, DeliveryRow.state)
    )
    found: dict[str, dict[str, int]] = {}
    for subscription, state, count in rows:
        found.setdefault(subscription, {})[state] = count
    return found
