"""Statements on the outbox: what waits to go out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from sqlalchemy import Connection, Float, Row, cast, extract, func, select, update

from cos_events.store.models import OutboxRow


@dataclass(frozen=True, slots=True)
class Pending:
    """A claimed outbox row: locked until the claiming transaction ends."""

    id: int
    source_module: str
    event_type: str
    envelope: str
    traceparent: str | None = None

    def continuing(self, traceparent: str | None) -> Self:
        """The same, with the trace context that goes on with it."""
        if traceparent == self.traceparent:
            return self
        return replace(self, traceparent=traceparent)


def claim(connection: Connection, limit: int, ids: Sequence[int] | None = None) -> list[Pending]:
    """Lock up to `limit` unpublished rows, oldest first, that no other publisher holds.

    Args:
        connection: in a transaction; its end releases the rows.
        limit: the most rows of one batch.
        ids: only these rows; None for whatever waits.
    """
    statement = (
        select(
            OutboxRow.id,
            OutboxRow.source_module,
            OutboxRow.event_type,
            OutboxRow.envelope,
            OutboxRow.traceparent,
        )
        .where(OutboxRow.published_at.is_(None))
        .order_by(OutboxRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    if ids is not None:
        statement = statement.where(OutboxRow.id == func.any(list(ids)))
    return [Pending(*row) for row in connection.execute(statement)]


def mark_published(connection: Connection, ids: Sequence[int]) -> Sequence[Row[str, float]]:
    """Say of these rows that both wires had them.

    Returns:
        For each its source module, and the seconds since it was recorded.
    """
    age = cast(extract("epoch", OutboxRow.published_at - OutboxRow.recorded_at), Float)
    return connection.execute(
        update(OutboxRow)
        .where(OutboxRow.id == func.any(list(ids)))
        .values(published_at=func.clock_timestamp())
        .returning(OutboxRow.source_module, age)
    ).all()
