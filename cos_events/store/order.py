"""Statements on the order of events with the same key: which may run now, and which is next."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
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

from cos_events.store.conditions import blocked, expected, has_delivery, on_its_way, wanted
from cos_events.store.models import AT_ONCE, STILL_TO_RUN, DeliveryRow, OutboxRow, SubscriptionRow

LOOKED_BACK = 1_000
"""How many ids apart an earlier event may be that commits late and still gets its key in time."""

PAGE = 1_000
"""The most envelopes in memory at a time."""

KeyOf = Callable[[str], str]
"""Gives the key of an envelope's JSON."""


def take_turn(
    connection: Connection, name: str, event_id: UUID, key_of: KeyOf, lost_after: timedelta
) -> bool:
    """Whether this event may run now; otherwise it is held until those before it have ended.

    By then every event committed earlier has its key, even if its message is still on its way. Call
    it under `locks.order`, and with a bound on how long it waits for a handler.

    Args:
        connection: in a transaction.
        name: of the subscription.
        event_id: of an event that has arrived.
        key_of: gives the key of an envelope.
        lost_after: when the event counts as lost, if no outcome is noted.

    Raises:
        OperationalError: a handler has been running it, or an earlier one, longer than that bound.
    """
    outbox_id = connection.scalar(select(OutboxRow.id).where(OutboxRow.event_id == event_id))
    if outbox_id is None:
        return True
    ours = and_(DeliveryRow.subscription == name, DeliveryRow.event_id == event_id)
    if connection.scalar(select(DeliveryRow.order_key).where(ours)) is None:
        _key_through(connection, name, outbox_id, key_of, lost_after)
    turn = case((blocked(), literal("held")), else_=literal("retrying"))
    state = connection.scalar(
        update(DeliveryRow)
        .where(
            ours,
            or_(
                DeliveryRow.state == "retrying",
                expected(),
                and_(DeliveryRow.state == "held", DeliveryRow.next_attempt_at <= func.now()),
            ),
        )
        .values(
            state=turn,
            next_attempt_at=case((turn == "held", literal(AT_ONCE)), else_=func.now() + lost_after),
        )
        .returning(DeliveryRow.state)
    )
    # Finished, or waiting for a later time: the attempt itself will see that.
    return state != "held"


def key(connection: Connection, name: str, event_id: UUID) -> str | None:
    """The key that an event has, if it is known."""
    ours = DeliveryRow.subscription == name, DeliveryRow.event_id == event_id
    return connection.scalar(select(DeliveryRow.order_key).where(*ours))


def _key_through(
    connection: Connection, name: str, outbox_id: int, key_of: KeyOf, lost_after: timedelta
) -> None:
    settled, keyed, xmin, running = connection.execute(
        select(
            SubscriptionRow.settled_through,
            func.greatest(SubscriptionRow.keyed_through, SubscriptionRow.settled_through),
            SubscriptionRow.keyed_xmin,
            # Before the events are looked up: what is not visible then is not earlier.
            text("pg_snapshot_xmin(pg_current_snapshot())::text::bigint"),
        ).where(SubscriptionRow.name == name)
    ).one_or_none() or (0, 0, 0, 0)
    through = max(keyed, outbox_id)
    new = or_(
        and_(OutboxRow.id > keyed, OutboxRow.id <= through),
        and_(
            OutboxRow.id > max(settled, keyed - LOOKED_BACK),
            OutboxRow.id <= keyed,
            OutboxRow.transaction_id >= xmin,
        ),
        OutboxRow.id == outbox_id,
    )
    while _key_new(connection, name, new, key_of, lost_after) == PAGE:
        pass
    while _key_unkeyed(connection, name, through, key_of) == PAGE:
        pass
    connection.execute(
        update(SubscriptionRow)
        .where(SubscriptionRow.name == name)
        .values(keyed_through=through, keyed_xmin=running)
    )


def _key_new(
    connection: Connection,
    name: str,
    which: ColumnElement[bool],
    key_of: KeyOf,
    lost_after: timedelta,
) -> int:
    """Hold the first of these events that have no delivery row, by their keys.

    What is on its way is not fed to the queue before it counts as lost.
    """
    due = case((on_its_way(), func.now() + lost_after), else_=literal(AT_ONCE)).label("due")
    rows = connection.execute(
        select(OutboxRow.event_id, OutboxRow.id, OutboxRow.envelope, due)
        .join(SubscriptionRow, SubscriptionRow.name == name)
        .where(
            which,
            wanted(),
            ~has_delivery(name),
        )
        .order_by(OutboxRow.id)
        .limit(PAGE)
    ).all()
    if rows:
        connection.execute(
            insert(DeliveryRow).on_conflict_do_nothing(),
            [
                {
                    "subscription": name,
                    "event_id": row.event_id,
                    "outbox_id": row.id,
                    "state": "held",
                    "attempts": 0,
                    "next_attempt_at": row.due,
                    "order_key": key_of(row.envelope),
                }
                for row in rows
            ],
        )
    return len(rows)


def _key_unkeyed(connection: Connection, name: str, through: int, key_of: KeyOf) -> int:
    """Give the first deliveries that were held without a key theirs."""
    rows = connection.execute(
        select(DeliveryRow.event_id, OutboxRow.envelope)
        .join(OutboxRow, OutboxRow.event_id == DeliveryRow.event_id)
        .where(
            DeliveryRow.subscription == name,
            DeliveryRow.state.in_(STILL_TO_RUN),
            DeliveryRow.order_key.is_(None),
            DeliveryRow.outbox_id <= through,
        )
        .limit(PAGE)
    ).all()
    if rows:
        table = DeliveryRow.__table__
        connection.execute(
            update(table)  # type: ignore[arg-type]
            .where(table.c.subscription == name, table.c.event_id == bindparam("id"))
            .values(order_key=bindparam("key")),
            [{"id": row.event_id, "key": key_of(row.envelope)} for row in rows],
        )
    return len(rows)
