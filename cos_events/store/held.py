"""Statements on held deliveries: copies that wait in PostgreSQL until their queue has room."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    case,
    false,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import InstrumentedAttribute, aliased

from cos_events.store import locks
from cos_events.store.by_index import there_is
from cos_events.store.models import AT_ONCE, STILL_TO_RUN, DeliveryRow, OutboxRow, SubscriptionRow
from cos_events.store.redelivery import wanted

LATER_LOOKED_AT = 10
"""Unfinished events of one key behind an event among which one that is on its way is looked for."""


def begin_to_hold(connection: Connection, name: str) -> None:
    """From the next published batch on, this subscription's copies wait here."""
    locks.decide_holding(connection)
    connection.execute(
        update(SubscriptionRow)
        .where(SubscriptionRow.name == name, ~SubscriptionRow.holding)
        .values(holding=True, holds=SubscriptionRow.holds + 1)
    )


def end_to_hold(connection: Connection, name: str) -> bool:
    """Go back to copies on the broker, unless some that are due still wait, or it is paused."""
    locks.decide_holding(connection)
    ended = connection.execute(
        update(SubscriptionRow)
        .where(
            SubscriptionRow.name == name,
            SubscriptionRow.holding,
            SubscriptionRow.paused_until.is_(None),
            ~there_is(*_due(name)),
        )
        .values(holding=False)
    )
    return bool(ended.rowcount)


def hold(
    connection: Connection,
    names: Sequence[str],
    which: ColumnElement[bool],
    again: timedelta | None = None,
) -> None:
    """Hold these events of the outbox for those of these subscriptions that want them.

    Args:
        connection: in a transaction.
        names: of the subscriptions.
        which: the events.
        again: what is on its way is not held, and counts as lost if nothing is heard of it after
            this; None where nothing is.
    """
    coming = false() if again is None else on_its_way()
    rows = select(
        SubscriptionRow.name,
        OutboxRow.event_id,
        OutboxRow.id,
        case((coming, literal("retrying")), else_=literal("held")),
        literal(0),
        case((coming, func.now() + again), else_=literal(AT_ONCE)),
    ).where(
        which,
        SubscriptionRow.name == func.any(list(names)),
        OutboxRow.id > SubscriptionRow.starts_after,
        wanted(),
    )
    columns = ["subscription", "event_id", "outbox_id", "state", "attempts", "next_attempt_at"]
    connection.execute(insert(DeliveryRow).from_select(columns, rows).on_conflict_do_nothing())


def with_due(connection: Connection) -> Sequence[Row[str, bool, bool]]:
    """The subscriptions that have work for the feeder.

    Returns:
        For each its name; whether it is holding; whether it is paused.
    """
    paused = SubscriptionRow.paused_until.is_not(None)
    due = there_is(*_due(SubscriptionRow.name))
    return connection.execute(
        select(SubscriptionRow.name, SubscriptionRow.holding, paused)
        .where(or_(SubscriptionRow.holding, paused, due))
        .order_by(SubscriptionRow.name)
    ).all()


def release(
    connection: Connection, name: str, limit: int, again: timedelta, order_key: str | None = None
) -> Sequence[Row[UUID, str, int, str | None]]:
    """Let the first of what is due go; each counts as lost if nothing is heard of it after `again`.

    Of events with one key only the first unfinished may go.

    Args:
        connection: in a transaction.
        name: of the subscription.
        limit: the most events.
        again: see above.
        order_key: only events of this key.

    Returns:
        For each the event's id, its envelope, the attempts made at it, its trace context.
    """
    one_key = [] if order_key is None else [DeliveryRow.order_key == order_key]
    first = (
        select(DeliveryRow.event_id)
        # Those of one that was removed are about to go.
        .join(SubscriptionRow, SubscriptionRow.name == DeliveryRow.subscription)
        .where(*_due(name), ~blocked(), *one_key)
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
        .values(state="retrying", next_attempt_at=func.now() + again)
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


def on_its_way() -> ColumnElement[bool]:
    """Whether a copy of an event without a delivery row is on the broker, or will be.

    Not of the history of before a subscription was known, nor of what is published while it is
    holding.
    """
    history = and_(
        OutboxRow.id <= SubscriptionRow.backfill_until,
        OutboxRow.published_at <= SubscriptionRow.created_at,
    )
    will_be_held = and_(SubscriptionRow.holding, OutboxRow.published_at.is_(None))
    return ~func.coalesce(or_(history, will_be_held), false())


def take_back(connection: Connection, name: str, event_ids: Sequence[UUID]) -> None:
    """Undo `release` for events whose copies the broker did not take.

    One that a handler has by now was taken all the same.
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


def blocked() -> ColumnElement[bool]:
    """Whether an earlier event of the same key has not ended, or a later one is on its way.

    A later one is when this one was committed late, or was a dead letter. It had no earlier one
    before it then, so few held ones lie between.
    """
    other = aliased(DeliveryRow)
    of_its_key = (
        other.subscription == DeliveryRow.subscription,
        other.order_key == DeliveryRow.order_key,
        other.state.in_(STILL_TO_RUN),
    )
    next_few = (
        select(other.state)
        .where(*of_its_key, other.outbox_id > DeliveryRow.outbox_id)
        .order_by(other.outbox_id)
        .limit(LATER_LOOKED_AT)
        .correlate(DeliveryRow)
        .subquery()
    )
    later = select(literal(1)).where(next_few.c.state == "retrying").limit(1).scalar_subquery()
    return or_(
        there_is(*of_its_key, other.outbox_id < DeliveryRow.outbox_id, row=other),
        later.is_not(None),
    )


def _due(name: InstrumentedAttribute[str] | str) -> tuple[ColumnElement[bool], ...]:
    return (
        DeliveryRow.subscription == name,
        DeliveryRow.state == "held",
        DeliveryRow.next_attempt_at <= func.now(),
    )
