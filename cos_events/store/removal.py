"""Statements that end a subscription for good."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select, tuple_

from cos_events.store import locks
from cos_events.store.lag import lags
from cos_events.store.models import STILL_TO_RUN, DeliveryRow, SubscriptionRow


def undelivered(connection: Connection, name: str) -> dict[str, int]:
    """How many events it is owed but has not received, by state; `waiting` has no row yet."""
    lag = next((each for each in lags(connection) if each.subscription == name), None)
    if lag is None:
        return {}
    begun = sum(lag.states.get(state, 0) for state in STILL_TO_RUN)
    return {**lag.states, "waiting": lag.events - begun}


def is_half_removed(connection: Connection, name: str) -> bool:
    """Whether deliveries are left from a subscription that was being removed."""
    left = select(DeliveryRow.event_id).where(DeliveryRow.subscription == name).limit(1)
    return connection.scalar(left) is not None


def forget(connection: Connection, name: str) -> None:
    """End it: publishers send it nothing more."""
    # The relay's sweep and publishers that know it end first; later ones no longer know it.
    locks.subscription(connection, name)
    locks.decide_holding(connection)
    connection.execute(delete(SubscriptionRow).where(SubscriptionRow.name == name))


def drop_deliveries(connection: Connection, name: str, limit: int) -> int:
    """Drop some of its deliveries; returns how many: none once it is registered again."""
    locks.subscription(connection, name)
    known = select(SubscriptionRow.name).where(SubscriptionRow.name == name)
    if connection.scalar(known) is not None:
        return 0
    key = tuple_(DeliveryRow.subscription, DeliveryRow.event_id)
    some = (
        select(DeliveryRow.subscription, DeliveryRow.event_id)
        .where(DeliveryRow.subscription == name)
        .limit(limit)
    )
    return connection.execute(delete(DeliveryRow).where(key.in_(some))).rowcount
