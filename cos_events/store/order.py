"""Statements on the order of events that have one key: who may run now, and who is next."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from cos_events.store.by_index import there_is
from cos_events.store.held import blocked
from cos_events.store.models import AT_ONCE, STILL_TO_RUN, DeliveryRow, OutboxRow, SubscriptionRow
from cos_events.store.redelivery import wanted

KeyOf = Callable[[str], str]
"""Gives the key of an envelope's JSON."""


def alone(connection: Connection, name: str) -> None:
    """Decide about this subscription's order alone, until the transaction ends."""
    lock = text("SELECT pg_advisory_xact_lock(hashtext('cos_events.order'), hashtext(:name))")
    connection.execute(lock, {"name": name})


def take_turn(
    connection: Connection, name: str, event_id: UUID, key_of: KeyOf, again: timedelta
) -> bool:
    """Whether this event may run now; otherwise it is held until those before it have ended.

    Every event that was committed before has its key by then, also one whose message is still on
    its way. Call it `alone`.

    Args:
        connection: in a transaction.
        name: of the subscription.
        event_id: of an event that has arrived.
        key_of: gives the key of an envelope.
        again: when the event counts as lost, if nothing is heard of it.
    """
    outbox_id = connection.scalar(select(OutboxRow.id).where(OutboxRow.event_id == event_id))
    if outbox_id is None:
        return True
    ours = and_(DeliveryRow.subscription == name, DeliveryRow.event_id == event_id)
    if connection.scalar(select(DeliveryRow.order_key).where(ours)) is None:
        _key_through(connection, name, outbox_id, key_of)
    turn = case((blocked(), literal("held")), else_=literal("retrying"))
    state = connection.scalar(
        update(DeliveryRow)
        .where(
            ours,
            or_(
                DeliveryRow.state == "retrying",
                and_(DeliveryRow.state == "held", DeliveryRow.next_attempt_at <= func.now()),
            ),
        )
        .values(
            state=turn,
            next_attempt_at=case((turn == "held", literal(AT_ONCE)), else_=func.now() + again),
        )
        .returning(DeliveryRow.state)
    )
    # Finished, or waiting for a later time: whoever runs it sees that by itself.
    return state != "held"


def key(connection: Connection, name: str, event_id: UUID) -> str | None:
    """The key that an event has, if it is known."""
    ours = DeliveryRow.subscription == name, DeliveryRow.event_id == event_id
    return connection.scalar(select(DeliveryRow.order_key).where(*ours))


def _key_through(connection: Connection, name: str, outbox_id: int, key_of: KeyOf) -> None:
    through = connection.scalar(
        select(func.greatest(SubscriptionRow.keyed_through, SubscriptionRow.settled_through)).where(
            SubscriptionRow.name == name
        )
    )
    new = connection.execute(
        select(OutboxRow.event_id, OutboxRow.id, OutboxRow.envelope)
        .join(SubscriptionRow, SubscriptionRow.name == name)
        .where(
            or_(
                and_(OutboxRow.id > (through or 0), OutboxRow.id <= outbox_id),
                OutboxRow.id == outbox_id,
            ),
            wanted(),
            ~there_is(DeliveryRow.subscription == name, DeliveryRow.event_id == OutboxRow.event_id),
        )
    ).all()
    if new:
        connection.execute(
            insert(DeliveryRow).on_conflict_do_nothing(),
            [
                {
                    "subscription": name,
                    "event_id": row.event_id,
                    "outbox_id": row.id,
                    "state": "held",
                    "attempts": 0,
                    "next_attempt_at": AT_ONCE,
                    "order_key": key_of(row.envelope),
                }
                for row in new
            ],
        )
    unkeyed = connection.execute(
        select(DeliveryRow.event_id, OutboxRow.envelope)
        .join(OutboxRow, OutboxRow.event_id == DeliveryRow.event_id)
        .where(
            DeliveryRow.subscription == name,
            DeliveryRow.state.in_(STILL_TO_RUN),
            DeliveryRow.order_key.is_(None),
            DeliveryRow.outbox_id <= outbox_id,
        )
    ).all()
    if unkeyed:
        table = DeliveryRow.__table__
        connection.execute(
            update(table)  # type: ignore[arg-type]
            .where(table.c.subscription == name, table.c.event_id == bindparam("id"))
            .values(order_key=bindparam("key")),
            [{"id": row.event_id, "key": key_of(row.envelope)} for row in unkeyed],
        )
    connection.execute(
        update(SubscriptionRow)
        .where(SubscriptionRow.name == name, SubscriptionRow.keyed_through < outbox_id)
        .values(keyed_through=outbox_id)
    )
