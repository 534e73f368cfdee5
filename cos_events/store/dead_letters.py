"""Statements on dead deliveries: find, let run again, purge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, func, select, tuple_, update

from cos_events.store.models import AT_ONCE, DeliveryRow, DeliveryState, OutboxRow

Place = tuple[int, str]
"""Where a list continues: the outbox id and the subscription of the last one seen."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant; what is left out does not matter.

    Attributes:
        subscription: whose.
        event_ids: only these events.
        event_type: of this type.
        error_type: whose last error was of this class, such as `ValueError`.
        died_after: died then or later.
        died_before: died before.
    """

    subscription: str | None = None
    event_ids: Sequence[UUID] = field(default=())
    event_type: str | None = None
    error_type: str | None = None
    died_after: datetime | None = None
    died_before: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The same, on `delivery` joined with `outbox`."""
        asked = [DeliveryRow.state == "dead", OutboxRow.event_id == DeliveryRow.event_id]
        if self.subscription is not None:
            asked.append(DeliveryRow.subscription == self.subscription)
        if self.event_ids:
            asked.append(DeliveryRow.event_id == func.any(list(self.event_ids)))
        if self.event_type is not None:
            asked.append(OutboxRow.event_type == self.event_type)
        if self.error_type is not None:
            asked.append(DeliveryRow.error.regexp_match(rf"(^|: ){self.error_type}:"))
        if self.died_after is not None:
            asked.append(DeliveryRow.updated_at >= self.died_after)
        if self.died_before is not None:
            asked.append(DeliveryRow.updated_at < self.died_before)
        return asked


def find(
    connection: Connection, which: Filter, limit: int, after: Place | None = None
) -> list[Any]:
    """The first of these dead letters, oldest first, with all that is known about them."""
    statement = (
        select(
            DeliveryRow.subscription,
            DeliveryRow.event_id,
            DeliveryRow.outbox_id,
            DeliveryRow.attempts,
            DeliveryRow.deaths,
            DeliveryRow.generation,
            DeliveryRow.error,
            DeliveryRow.created_at,
            DeliveryRow.updated_at,
            DeliveryRow.correction,
            OutboxRow.envelope,
        )
        .where(*which.conditions())
        .order_by(DeliveryRow.outbox_id, DeliveryRow.subscription)
        .limit(limit)
    )
    if after is not None:
        place = tuple_(DeliveryRow.outbox_id, DeliveryRow.subscription)
        statement = statement.where(place > tuple_(*after))
    return list(connection.execute(statement))


def count(connection: Connection, which: Filter) -> int:
    """How many there are."""
    return connection.scalar(select(func.count()).where(*which.conditions())) or 0


def revive(connection: Connection, which: Filter, limit: int) -> list[UUID]:
    """Let the first of these run again from scratch; returns their events, oldest first."""
    return _take(
        connection,
        which,
        limit,
        state="held",
        attempts=0,
        deaths=0,
        next_attempt_at=AT_ONCE,
    )


def discard(connection: Connection, which: Filter, limit: int) -> list[UUID]:
    """Let the first of these never run again; returns their events, oldest first."""
    return _take(connection, which, limit, state="discarded")


def correct(
    connection: Connection, subscription: str, event_id: UUID, updated_at: datetime, envelope: str
) -> bool:
    """Let this dead letter's copies carry another envelope.

    Returns:
        Whether it is one, and nobody has changed it since `updated_at`.
    """
    corrected = connection.execute(
        update(DeliveryRow)
        .where(
            DeliveryRow.subscription == subscription,
            DeliveryRow.event_id == event_id,
            DeliveryRow.state == "dead",
            DeliveryRow.updated_at == updated_at,
        )
        .values(correction=envelope)
    )
    return bool(corrected.rowcount)


def _take(
    connection: Connection, which: Filter, limit: int, *, state: DeliveryState, **values: Any
) -> list[UUID]:
    first = (
        select(DeliveryRow.subscription, DeliveryRow.event_id)
        .where(*which.conditions())
        .order_by(DeliveryRow.outbox_id)
        .limit(limit)
        .with_for_update(of=DeliveryRow, skip_locked=True)
        .cte("first")
    )
    taken = (
        update(DeliveryRow)
        .where(
            DeliveryRow.subscription == first.c.subscription,
            DeliveryRow.event_id == first.c.event_id,
        )
        .values(state=state, updated_at=func.clock_timestamp(), **values)
        .returning(DeliveryRow.event_id, DeliveryRow.outbox_id)
        .cte("taken")
    )
    return list(connection.scalars(select(taken.c.event_id).order_by(taken.c.outbox_id)))
