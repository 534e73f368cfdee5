"""Statements that hand a new subscription the history it asked for."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, and_, func, select, update
from sqlalchemy.exc import OperationalError

from cos_events.store.held import hold
from cos_events.store.locks import in_bounded_time
from cos_events.store.models import DeliveryRow, OutboxRow, SubscriptionRow
from cos_events.store.redelivery import advance


def backfill(
    connection: Connection, name: str, horizon: int, limit: int, lost_after: timedelta
) -> bool:
    """Hold the next events of the history that a new subscription still waits for.

    Nothing while enough is held already. The watermark follows, and stops below what is not yet
    published, or may still commit.

    Args:
        connection: in a transaction that has the subscription's watermark to itself.
        name: of the subscription.
        horizon: the last outbox id below which no transaction can still commit.
        limit: the most ids of one call, and the most events that are held at a time.
        lost_after: when an event that has been published since counts as lost, if no outcome is
            noted; a copy of it is on its way.

    Returns:
        Whether there is history left.
    """
    row = connection.execute(
        select(SubscriptionRow.settled_through, SubscriptionRow.backfill_until).where(
            SubscriptionRow.name == name, SubscriptionRow.backfill_until.is_not(None)
        )
    ).one_or_none()
    if row is None:
        return False
    waiting = (
        select(DeliveryRow.event_id)
        .where(DeliveryRow.subscription == name, DeliveryRow.state == "held")
        .limit(limit)
        .subquery()
    )
    if connection.scalar(select(func.count()).select_from(waiting)) == limit:
        return True
    unpublished = connection.scalar(
        select(func.min(OutboxRow.id)).where(OutboxRow.published_at.is_(None))
    )
    through = min(
        row.settled_through + limit,
        row.backfill_until,
        horizon,
        horizon if unpublished is None else unpublished - 1,
    )
    if through > row.settled_through:
        page = and_(OutboxRow.id > row.settled_through, OutboxRow.id <= through)
        try:
            with in_bounded_time(connection):
                hold(connection, [name], page, lost_after)
        except OperationalError:
            # A handler is running one of them at this moment, and may yet fail.
            return True
        advance(connection, name, through)
    if through < row.backfill_until:
        return True
    connection.execute(
        update(SubscriptionRow).where(SubscriptionRow.name == name).values(backfill_until=None)
    )
    return False
