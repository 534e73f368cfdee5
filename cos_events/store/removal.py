"""Statements that pause a subscription by hand, and end one for good."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, or_, select, tuple_, update

from cos_events.store.models import UNFINISHED, DeliveryRow, OutboxRow, SubscriptionRow
from cos_events.store.redelivery import wanted

UNTIL_RESUMED = datetime(9999, 12, 31, tzinfo=UTC)
"""As `paused_until`: until a person resumes it."""


def find(connection: Connection, name: str | None = None) -> list[Row[Any]]:
    """The subscriptions with their whole state, by name."""
    columns = SubscriptionRow.__table__.c
    statement = select(*columns).order_by(columns.name)
    if name is not None:
        statement = statement.where(columns.name == name)
    return list(connection.execute(statement))


def pause(connection: Connection, name: str, because: str) -> None:
    """Pause it until it is resumed."""
    connection.execute(
        update(SubscriptionRow)
        .where(SubscriptionRow.name == name)
        .values(paused_until=UNTIL_RESUMED, paused_because=because, probes=0, probing_until=None)
    )


def resume(connection: Connection, name: str) -> bool:
    """Go on, whoever paused it; returns whether it was paused."""
    resumed = connection.execute(
        update(SubscriptionRow)
        .where(SubscriptionRow.name == name, SubscriptionRow.paused_until.is_not(None))
        .values(paused_until=None, paused_because=None, probes=0, probing_until=None)
    )
    return bool(resumed.rowcount)


def undelivered(connection: Connection, name: str) -> dict[str, int]:
    """How many events it is owed and has not had, by state; `waiting` has no delivery row yet."""
    rows = connection.execute(
        select(DeliveryRow.state, func.count())
        .where(
            DeliveryRow.subscription == name,
            DeliveryRow.state.in_(UNFINISHED),
        )
        .group_by(DeliveryRow.state)
    )
    found: dict[str, int] = {state: number for state, number in rows}  # noqa: C416
    without_row = (
        select(func.count(OutboxRow.id))
        .join(SubscriptionRow, SubscriptionRow.name == name)
        .outerjoin(
            DeliveryRow,
            and_(DeliveryRow.subscription == name, DeliveryRow.event_id == OutboxRow.event_id),
        )
        .where(
            or_(
                OutboxRow.id > SubscriptionRow.settled_through,
                OutboxRow.published_at.is_(None),
            ),
            OutboxRow.id > SubscriptionRow.starts_after,
            wanted(),
            DeliveryRow.event_id.is_(None),
        )
    )
    return {**found, "waiting": connection.scalar(without_row) or 0}


def forget(connection: Connection, name: str) -> None:
    """End it: publishers send it nothing more."""
    connection.execute(delete(SubscriptionRow).where(SubscriptionRow.name == name))


def drop_deliveries(connection: Connection, name: str, limit: int) -> int:
    """Drop some of its deliveries; returns how many."""
    key = tuple_(DeliveryRow.subscription, DeliveryRow.event_id)
    some = (
        select(DeliveryRow.subscription, DeliveryRow.event_id)
        .where(DeliveryRow.subscription == name)
        .limit(limit)
    )
    return connection.execute(delete(DeliveryRow).where(key.in_(some))).rowcount
