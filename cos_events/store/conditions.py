"""Conditions on an event, its subscription and its delivery, for use within any statement."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, and_, false, func, literal, or_, select
from sqlalchemy.orm import InstrumentedAttribute, aliased

from cos_events.store.models import STILL_TO_RUN, DeliveryRow, OutboxRow, SubscriptionRow

LATER_LOOKED_AT = 10
"""How many unfinished events of a key behind an event are searched for one that is on its way."""


def there_is(*conditions: ColumnElement[bool], row: Any = DeliveryRow) -> ColumnElement[bool]:
    """Whether a delivery meets these conditions, looked up for each row of the outer statements.

    PostgreSQL turns EXISTS into a join. With stale statistics, as after a burst, it then reads a
    whole history to find a few rows: a sweep of the relay took a second at 10⁶ rows, a batch of the
    feeder four at 50,000. A scalar subquery stays one.

    Args:
        conditions: on it, and on what the outer statements read.
        row: an alias of it, where they read deliveries too.
    """
    found = select(literal(1)).where(*conditions).limit(1).correlate_except(row)
    return found.scalar_subquery().is_not(None)


def has_delivery(name: InstrumentedAttribute[str] | str) -> ColumnElement[bool]:
    """Whether the ledger knows of an outbox event at this subscription."""
    return there_is(DeliveryRow.subscription == name, DeliveryRow.event_id == OutboxRow.event_id)


def wanted() -> ColumnElement[bool]:
    """The condition that joins a subscription to the events that its filters let through."""
    return and_(
        _matches(SubscriptionRow.modules, OutboxRow.source_module),
        _matches(SubscriptionRow.event_types, OutboxRow.event_type),
    )


def _matches(
    names: InstrumentedAttribute[list[str] | None], value: InstrumentedAttribute[str]
) -> ColumnElement[bool]:
    return or_(names.is_(None), value == func.any(names))


def on_its_way() -> ColumnElement[bool]:
    """Whether a copy of an event without a delivery row is on the broker, or will be.

    Not for the history from before a subscription was registered, nor for what is published while
    it is holding.
    """
    history = and_(
        OutboxRow.id <= SubscriptionRow.backfill_until,
        OutboxRow.published_at <= SubscriptionRow.created_at,
    )
    will_be_held = and_(SubscriptionRow.holding, OutboxRow.published_at.is_(None))
    return ~func.coalesce(or_(history, will_be_held), false())


def expected() -> ColumnElement[bool]:
    """The condition of what is held only until its first copy arrives, which is on its way."""
    return and_(DeliveryRow.state == "held", DeliveryRow.attempts == 0)


def blocked() -> ColumnElement[bool]:
    """Whether an earlier event of the same key has not ended, or a later one is on its way.

    A later one is on its way if this one was committed late, or was a dead letter. It had no
    earlier one before it then, so few held ones lie between.
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


def held_and_due(name: InstrumentedAttribute[str] | str) -> tuple[ColumnElement[bool], ...]:
    """The conditions of what a subscription's queue should get, as it has room.

    A row whose event is gone can never be sent: it would stay ahead of the others.
    """
    return (
        DeliveryRow.subscription == name,
        DeliveryRow.state == "held",
        DeliveryRow.next_attempt_at <= func.now(),
        there_is(OutboxRow.event_id == DeliveryRow.event_id, row=OutboxRow),
    )
