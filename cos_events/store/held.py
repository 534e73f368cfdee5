"""Statements on held deliveries: copies that wait in PostgreSQL until their queue has room."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    case,
    false,
    func,
    literal,
    or_,
    select,
    update,
)

from cos_events.store import locks
from cos_events.store.conditions import blocked, held_and_due, on_its_way, there_is, wanted
from cos_events.store.deliveries import from_outbox
from cos_events.store.models import AT_ONCE, DeliveryRow, OutboxRow, SubscriptionRow


def start_holding(connection: Connection, name: str) -> None:
    """From the next published batch on, this subscription's copies wait here."""
    locks.decide_holding(connection)
    connection.execute(
        update(SubscriptionRow)
        .where(SubscriptionRow.name == name, ~SubscriptionRow.holding)
        .values(holding=True, holds=SubscriptionRow.holds + 1)
    )


def stop_holding(connection: Connection, name: str) -> bool:
    """Go back to copies on the broker, unless some that are due still wait, or it is paused."""
    locks.decide_holding(connection)
    ended = connection.execute(
        update(SubscriptionRow)
        .where(
            SubscriptionRow.name == name,
            SubscriptionRow.holding,
            SubscriptionRow.paused_until.is_(None),
            ~there_is(*held_and_due(name)),
        )
        .values(holding=False)
    )
    return bool(ended.rowcount)


def hold(
    connection: Connection,
    names: Sequence[str],
    which: ColumnElement[bool],
    lost_after: timedelta | None = None,
) -> None:
    """Hold these events of the outbox for those of these subscriptions that want them.

    Args:
        connection: in a transaction.
        names: of the subscriptions.
        which: the events.
        lost_after: what is on its way is not held, and counts as lost if no outcome is noted
            within this; None if nothing is on its way.
    """
    coming = false() if lost_after is None else on_its_way()
    statement = from_outbox(
        {
            "subscription": SubscriptionRow.name,
            "state": case((coming, literal("retrying")), else_=literal("held")),
            "attempts": 0,
            "next_attempt_at": case((coming, func.now() + lost_after), else_=literal(AT_ONCE)),
        },
        which,
        SubscriptionRow.name == func.any(list(names)),
        OutboxRow.id > SubscriptionRow.starts_after,
        wanted(),
    )
    connection.execute(statement.on_conflict_do_nothing())


def with_due(connection: Connection) -> Sequence[Row[str, bool, bool]]:
    """The subscriptions that have work for the feeder.

    Returns:
        For each its name; whether it is holding; whether it is paused.
    """
    paused = SubscriptionRow.paused_until.is_not(None)
    due = there_is(*held_and_due(SubscriptionRow.name))
    return connection.execute(
        select(SubscriptionRow.name, SubscriptionRow.holding, paused)
        .where(or_(SubscriptionRow.holding, paused, due))
        .order_by(SubscriptionRow.name)
    ).all()


def release(
    connection: Connection,
    name: str,
    limit: int,
    lost_after: timedelta,
    order_key: str | None = None,
) -> Sequence[Row[UUID, str, int, str | None]]:
    """Let the first of what is due go.

    Of events with the same key only the first unfinished one may go.

    Args:
        connection: in a transaction.
        name: of the subscription.
        limit: the most events.
        lost_after: when each counts as lost, if no outcome is noted.
        order_key: only events of this key.

    Returns:
        For each the event's id, its envelope, the attempts made at it, its trace context.
    """
    one_key = [] if order_key is None else [DeliveryRow.order_key == order_key]
    first = (
        select(DeliveryRow.event_id)
        # Those of a removed subscription are about to go.
        .join(SubscriptionRow, SubscriptionRow.name == DeliveryRow.subscription)
        .where(*held_and_due(name), ~blocked(), *one_key)
        .order_by(DeliveryRow.next_attempt_at, DeliveryRow.outbox_id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=DeliveryRow)
        .cte("first")
    )
    released = (
        update(DeliveryRow)
        .where(
            DeliveryRow.subscription == name,
            DeliveryRow.event_id == first.c.event_id,
            OutboxRow.event_id == DeliveryRow.event_id,
        )
        .values(state="retrying", next_attempt_at=func.now() + lost_after)
        .returning(
            DeliveryRow.event_id,
            func.coalesce(DeliveryRow.correction, OutboxRow.envelope).label("envelope"),
            DeliveryRow.attempts,
            OutboxRow.traceparent,
            OutboxRow.id,
        )
        .cte("released")
    )
    return connection.execute(
        select(
            released.c.event_id, released.c.envelope, released.c.attempts, released.c.traceparent
        ).order_by(released.c.id)
    ).all()


def take_back(connection: Connection, name: str, event_ids: Sequence[UUID]) -> None:
    """Undo `release` for events whose copies the broker did not take.

    One that a handler is running by now was taken anyway.
    """
    ours = DeliveryRow.subscription == name
    waiting = (
        select(DeliveryRow.event_id)
        .where(
            ours, DeliveryRow.event_id == func.any(list(event_ids)), DeliveryRow.state == "retrying"
        )
        .with_for_update(skip_locked=True)
        .cte("waiting")
    )
    connection.execute(
        update(DeliveryRow)
        .where(ours, DeliveryRow.event_id == waiting.c.event_id)
        .values(state="held", next_attempt_at=AT_ONCE)
    )
