"""Statements of the relay: what was published long ago and has not been received."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    ScalarSelect,
    false,
    func,
    literal,
    or_,
    select,
    text,
    update,
)

from cos_events.store.conditions import has_delivery, there_is, wanted
from cos_events.store.deliveries import from_outbox
from cos_events.store.models import DeliveryRow, OutboxRow, SubscriptionRow

SWEEP_SIZE = 10_000
"""The most events that one sweep looks at for one subscription."""

RECENT = 1_000
"""How many of the newest events are looked at to see how far a subscription has come."""

AHEAD = 1_000
"""This many ids above its watermark, a subscription is looked at even if none can be overdue:
queries for how far it is behind (`cos-events status`, metrics) read all above it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Which outbox ids had been assigned at one moment, and which transactions had begun.

    Once every transaction below `next_transaction` has ended, no row with an id up to `last_id` can
    appear any more: a transaction has its number before its row has an id (see `OutboxRow`), unless
    `ids_at_once` is above 1.
    """

    last_id: int
    next_transaction: int
    oldest_running: int


def snapshot(connection: Connection) -> Snapshot:
    """The current snapshot."""
    # Two statements: the id must be read before the transactions are.
    last_id = connection.scalar(
        text("SELECT pg_sequence_last_value('cos_events.outbox_id_seq'::regclass)")
    )
    # Our own number: a snapshot's `xmax` only follows the last transaction that has ended, and one
    # that is still running may be above it.
    following, oldest = connection.execute(
        text(
            "SELECT pg_current_xact_id()::text::bigint, "
            "pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
        )
    ).one()
    return Snapshot(last_id or 0, following, oldest)


def ids_at_once(connection: Connection) -> int:
    """How many outbox ids a connection takes at once: 1, unless somebody has altered it."""
    cache = "SELECT seqcache FROM pg_sequence WHERE seqrelid = 'cos_events.outbox_id_seq'::regclass"
    return int(connection.execute(text(cache)).scalar_one())


def worth_a_look(
    connection: Connection, last_id: int, lost_after: timedelta
) -> Sequence[Row[str, bool]]:
    """The subscriptions for which a sweep may find something, or should move the watermark.

    One statement for all: looking at one takes ten, and almost always there is nothing.

    Args:
        connection: on the bus's database.
        last_id: the newest outbox id.
        lost_after: after publication, or a retry's time, until an event counts as lost.

    Returns:
        For each its name; and whether there are retries overdue by that long.
    """
    next_recorded_at = (
        select(OutboxRow.recorded_at)
        .where(OutboxRow.id > SubscriptionRow.settled_through)
        .order_by(OutboxRow.id)
        .limit(1)
        .correlate(SubscriptionRow)
        .scalar_subquery()
    )
    late = there_is(DeliveryRow.subscription == SubscriptionRow.name, *_is_late(lost_after))
    return connection.execute(
        select(SubscriptionRow.name, late)
        .where(
            or_(
                SubscriptionRow.backfill_until.is_not(None),
                SubscriptionRow.settled_through + AHEAD <= last_id,
                # A time in the future is from a wrong clock, and says nothing about the next one.
                ~next_recorded_at.between(func.now() - lost_after, func.clock_timestamp()),
                late,
            )
        )
        .order_by(SubscriptionRow.name)
    ).all()


def watermark(connection: Connection, subscription: str) -> int:
    """Each event that it is owed up to this id has a delivery row."""
    found: int | None = connection.scalar(
        select(SubscriptionRow.settled_through).where(SubscriptionRow.name == subscription)
    )
    return found or 0


def end_of_sweep(connection: Connection, after: int) -> int | None:
    """The last id that a sweep from there looks at; None if it reaches the end."""
    return connection.scalar(
        select(OutboxRow.id)
        .where(OutboxRow.id > after)
        .order_by(OutboxRow.id)
        .offset(SWEEP_SIZE - 1)
        .limit(1)
    )


def without_delivery(  # noqa: PLR0913 - which events, and what is asked of them
    connection: Connection,
    subscription: str,
    lost_after: timedelta,
    limit: int,
    *,
    after: int,
    through: int | None,
) -> Sequence[Row[int, bool, bool]]:
    """The oldest events between these ids that have no delivery row.

    Returns:
        For each its id; whether it is overdue; and whether one that was published that much later
        has already been delivered, so that it cannot still be in the queue.
    """
    overtaken_by = _overtaken_by(subscription)
    return connection.execute(
        select(
            OutboxRow.id,
            func.coalesce(OutboxRow.published_at < func.now() - lost_after, false()).label(
                "overdue"
            ),
            func.coalesce(OutboxRow.published_at < overtaken_by - lost_after, false()).label(
                "overtaken"
            ),
        )
        .join(SubscriptionRow, SubscriptionRow.name == subscription)
        .where(
            # As values: then PostgreSQL knows that few rows are between them.
            OutboxRow.id > after,
            *([] if through is None else [OutboxRow.id <= through]),
            wanted(),
            ~has_delivery(subscription),
        )
        .order_by(OutboxRow.id)
        .limit(limit)
    ).all()


def oldest_without_delivery(connection: Connection, subscription: str) -> float:
    """Seconds since the oldest event without a delivery row was published; 0 if there is none.

    History that a new subscription has yet to get does not count.
    """
    known = func.greatest(SubscriptionRow.settled_through, SubscriptionRow.backfill_until)
    through = connection.scalar(select(known).where(SubscriptionRow.name == subscription)) or 0
    age = connection.scalar(
        select(func.extract("epoch", func.now() - OutboxRow.published_at))
        .join(SubscriptionRow, SubscriptionRow.name == subscription)
        .where(
            OutboxRow.id > through,
            OutboxRow.published_at.is_not(None),
            wanted(),
            ~has_delivery(subscription),
        )
        .order_by(OutboxRow.id)
        .limit(1)
    )
    return max(0.0, round(float(age or 0), 3))


def advance(connection: Connection, subscription: str, through: int) -> None:
    """Note that each event up to `through` has a delivery row."""
    connection.execute(
        update(SubscriptionRow)
        .where(SubscriptionRow.name == subscription, SubscriptionRow.settled_through < through)
        .values(settled_through=through)
    )


def note_sent_again(
    connection: Connection, subscription: str, outbox_ids: Sequence[int], lost_after: timedelta
) -> Sequence[Row[str, int, str | None]]:
    """Give these events a delivery row, due again after `lost_after`.

    Returns:
        For each its envelope, the attempts made at it, its trace context; oldest first.
    """
    statement = from_outbox(
        {
            "subscription": subscription,
            "state": "retrying",
            "attempts": 0,
            "next_attempt_at": func.now() + lost_after,
        },
        OutboxRow.id == func.any(list(outbox_ids)),
        # It may have been removed since these were looked up.
        select(SubscriptionRow.name).where(SubscriptionRow.name == subscription).exists(),
    )
    written = connection.scalars(
        statement.on_conflict_do_nothing().returning(DeliveryRow.event_id)
    ).all()
    return connection.execute(
        select(OutboxRow.envelope, literal(0), OutboxRow.traceparent)
        .where(OutboxRow.event_id == func.any(list(written)))
        .order_by(OutboxRow.id)
    ).all()


def take_late_retries(
    connection: Connection, subscription: str, lost_after: timedelta, limit: int, *, overtaken: bool
) -> Sequence[Row[str, int, str | None]]:
    """Retries long overdue, due again after `lost_after`; as `note_sent_again`.

    Args:
        connection: in a transaction.
        subscription: its name.
        lost_after: see above.
        limit: the most retries.
        overtaken: only those overtaken by events published that much later, so that they cannot
            still be in the queue.
    """
    overtaken_by = _overtaken_by(subscription) - lost_after
    due = (
        select(DeliveryRow.event_id)
        # Those of a removed subscription are about to go.
        .join(SubscriptionRow, SubscriptionRow.name == DeliveryRow.subscription)
        .join(OutboxRow, OutboxRow.event_id == DeliveryRow.event_id)
        .where(
            DeliveryRow.subscription == subscription,
            *_is_late(lost_after),
            *([DeliveryRow.next_attempt_at < overtaken_by] if overtaken else []),
        )
        .order_by(DeliveryRow.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True, of=DeliveryRow)
    )
    return connection.execute(
        update(DeliveryRow)
        .where(
            DeliveryRow.subscription == subscription,
            DeliveryRow.event_id.in_(due),
            OutboxRow.event_id == DeliveryRow.event_id,
        )
        .values(next_attempt_at=func.now() + lost_after)
        .returning(
            func.coalesce(DeliveryRow.correction, OutboxRow.envelope),
            DeliveryRow.attempts,
            OutboxRow.traceparent,
        )
    ).all()


def _overtaken_by(subscription: str) -> ScalarSelect[datetime]:
    """When the newest delivered event was published, as far as can be seen."""
    newest = select(OutboxRow.event_id, OutboxRow.published_at).order_by(OutboxRow.id.desc())
    recent = newest.limit(RECENT).subquery()
    delivered = there_is(
        DeliveryRow.subscription == subscription,
        DeliveryRow.event_id == recent.c.event_id,
        DeliveryRow.state == "delivered",
    )
    return select(func.max(recent.c.published_at)).where(delivered).scalar_subquery()


def _is_late(lost_after: timedelta) -> tuple[ColumnElement[bool], ...]:
    return DeliveryRow.state == "retrying", DeliveryRow.next_attempt_at < func.now() - lost_after
