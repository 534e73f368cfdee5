"""Statements on how far each subscription is behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Select,
    cast,
    extract,
    func,
    select,
    true,
)
from sqlalchemy.orm import InstrumentedAttribute

from cos_events.store.conditions import has_delivery, wanted
from cos_events.store.models import UNFINISHED, DeliveryRow, OutboxRow, SubscriptionRow


@dataclass(slots=True)
class Lag:
    """How far a subscription is behind.

    Attributes:
        subscription: its name.
        paused: its handler is not called.
        holding: its queue is full, and new copies wait in PostgreSQL.
        events: committed ones that it has yet to receive; dead letters are not among them.
        seconds: the age of the oldest of those; 0 if there is none.
        states: how many of its deliveries are `held`, `retrying` and `dead`.
    """

    subscription: str
    paused: bool
    holding: bool
    events: int
    seconds: float
    states: dict[str, int] = field(default_factory=dict)


def lags(connection: Connection) -> list[Lag]:
    """How far each subscription is behind, by name.

    What it has received costs little, however much that is: the relay's watermark covers it, except
    for the last of it (`redelivery.AHEAD`).
    """
    found = {row.name: Lag(*row) for row in connection.execute(_without_delivery())}
    for name, state, events, seconds in connection.execute(_unfinished()):
        if (lag := found.get(name)) is None:
            continue
        lag.states[state] = events
        if state != "dead":
            lag.events += events
            lag.seconds = max(lag.seconds, seconds)
    return list(found.values())


def _without_delivery() -> Select[str, bool, bool, int, float]:
    ahead = (
        select(func.count().label("events"), func.min(OutboxRow.recorded_at).label("oldest"))
        .where(
            OutboxRow.id > SubscriptionRow.settled_through,
            wanted(),
            ~has_delivery(SubscriptionRow.name),
        )
        .correlate(SubscriptionRow)
        .lateral("ahead")
    )
    return (
        select(
            SubscriptionRow.name,
            SubscriptionRow.paused_until.is_not(None),
            SubscriptionRow.holding,
            ahead.c.events,
            _age(ahead.c.oldest),
        )
        .join(ahead, true())
        .order_by(SubscriptionRow.name)
    )


def _unfinished() -> Select[str, str, int, float]:
    first = (
        select(
            DeliveryRow.subscription,
            DeliveryRow.state,
            func.count().label("events"),
            func.min(DeliveryRow.outbox_id).label("outbox_id"),
        )
        # As in the index: the others are all history.
        .where(DeliveryRow.state.in_(UNFINISHED))
        .group_by(DeliveryRow.subscription, DeliveryRow.state)
        .subquery("first")
    )
    # Older versions may have left a row whose event is gone: the others still count.
    return select(
        first.c.subscription, first.c.state, first.c.events, _age(OutboxRow.recorded_at)
    ).outerjoin(OutboxRow, OutboxRow.id == first.c.outbox_id)


def _age(
    moment: ColumnElement[datetime] | InstrumentedAttribute[datetime],
) -> ColumnElement[float]:
    seconds = extract("epoch", func.clock_timestamp() - moment)
    return cast(func.greatest(seconds, 0), Float)
