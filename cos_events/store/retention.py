"""Statements that drop what every subscription has received."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, func, or_, select, text, update

from cos_events.store.conditions import there_is
from cos_events.store.models import (
    UNFINISHED,
    DeliveryRow,
    OutboxRow,
    RetentionRow,
    SubscriptionRow,
)


def next_page(
    connection: Connection, after: int, keep: timedelta, limit: int
) -> tuple[Sequence[int], int | None]:
    """Those of the next `limit` outbox ids that are old enough and behind every watermark.

    Below its watermark a subscription has a delivery row for each event that it is owed, and no
    transaction can commit an event any more.

    Returns:
        The ids; and the one to continue after, None at the end: nothing old enough can follow a
        page whose last event was recorded too recently, however late others were published.
    """
    through = connection.scalar(select(func.min(SubscriptionRow.settled_through)))
    moment = func.now() - keep
    following = select(
        OutboxRow.id, OutboxRow.published_at < moment, OutboxRow.recorded_at < moment
    ).where(OutboxRow.id > after)
    if through is not None:
        following = following.where(OutboxRow.id <= through)
    # Filtered after the limit: otherwise what is too young would be read to its end each time.
    page = connection.execute(following.order_by(OutboxRow.id).limit(limit)).all()
    old = [each for each, is_old, _ in page if is_old]
    if len(page) < limit:
        return old, None
    last, _, may_go_on = page[-1]
    return old, last if may_go_on else None


def drop(connection: Connection, ids: Sequence[int]) -> int:
    """Drop those of these events that nobody still needs, with their deliveries; returns how many.

    What is held, waits for a retry or is dead at any subscription stays.
    """
    # Locked first: what is replayed meanwhile is held by then, and the next statement sees it.
    locked = select(OutboxRow.id).where(OutboxRow.id == func.any(list(ids)))
    ids = connection.scalars(locked.with_for_update(skip_locked=True)).all()
    names = list(connection.scalars(select(SubscriptionRow.name)))
    lacks = there_is(
        DeliveryRow.subscription == func.any(names),
        DeliveryRow.event_id == OutboxRow.event_id,
        DeliveryRow.state.in_(UNFINISHED),
    )
    dropped = connection.scalars(
        delete(OutboxRow)
        .where(OutboxRow.id == func.any(list(ids)), ~lacks)
        .returning(OutboxRow.event_id)
    ).all()
    if dropped:
        connection.execute(
            delete(DeliveryRow).where(
                DeliveryRow.subscription == func.any(names),
                DeliveryRow.event_id == func.any(list(dropped)),
            )
        )
    return len(dropped)


def note(connection: Connection, keep: timedelta) -> None:
    """Write from what time on the outbox is complete."""
    moment = func.now() - keep
    connection.execute(
        update(RetentionRow)
        .where(or_(RetentionRow.dropped_before.is_(None), RetentionRow.dropped_before < moment))
        .values(dropped_before=moment)
    )


def dropped_before(connection: Connection) -> datetime | None:
    """Events recorded earlier may have been dropped; None: none was."""
    return connection.scalar(select(RetentionRow.dropped_before))


def size(connection: Connection) -> tuple[int, datetime | None]:
    """Bytes of the outbox and the ledger on disk, and when the oldest event was recorded."""
    tables = "pg_total_relation_size('{}')"
    total = " + ".join(tables.format(f"cos_events.{name}") for name in ("outbox", "delivery"))
    oldest = select(OutboxRow.recorded_at).order_by(OutboxRow.id).limit(1)
    return connection.scalar(text(f"SELECT {total}")) or 0, connection.scalar(oldest)


def held_up_by(connection: Connection, keep: timedelta) -> str | None:
    """The subscription whose watermark is lowest, if that keeps an event from being dropped."""
    lowest = connection.execute(
        select(SubscriptionRow.name, SubscriptionRow.settled_through)
        .order_by(SubscriptionRow.settled_through)
        .limit(1)
    ).one_or_none()
    if lowest is None:
        return None
    old = OutboxRow.published_at < func.now() - keep
    beyond = select(OutboxRow.id).where(OutboxRow.id > lowest.settled_through, old)
    return None if connection.scalar(beyond.limit(1)) is None else str(lowest.name)
