"""Statements on the outbox: what waits to go out, and which modules and types events have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from sqlalchemy import (
    BigInteger,
    Connection,
    Float,
    Integer,
    Select,
    Update,
    bindparam,
    cast,
    extract,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from cos_events.store import locks
from cos_events.store.models import OutboxRow


@dataclass(frozen=True, slots=True)
class Pending:
    """A claimed outbox row: locked until the claiming transaction ends.

    Attributes:
        id: of the row.
        source_module: of the event.
        event_type: of the event.
        envelope: its JSON.
        traceparent: the trace context of its recording.
        waited: seconds from its recording to its claim.
    """

    id: int
    source_module: str
    event_type: str
    envelope: str
    traceparent: str | None = None
    waited: float = 0.0

    def continuing(self, traceparent: str | None) -> Self:
        """The same, with the trace context that travels on with it."""
        if traceparent == self.traceparent:
            return self
        return replace(self, traceparent=traceparent)


_THESE = bindparam("these", type_=ARRAY(BigInteger))
_WAITING = (
    select(OutboxRow.id)
    .where(OutboxRow.published_at.is_(None))
    .order_by(OutboxRow.id)
    .limit(bindparam("at_most", type_=Integer))
    .with_for_update(skip_locked=True)
)


def _claim(waiting: Select[int]) -> Update:
    return (
        update(OutboxRow)
        # As an array: a subquery might be run again for each row, and lock others.
        .where(OutboxRow.id == func.any(func.array(waiting.scalar_subquery())))
        .values(published_at=func.clock_timestamp())
        .returning(
            OutboxRow.id,
            OutboxRow.source_module,
            OutboxRow.event_type,
            OutboxRow.envelope,
            OutboxRow.traceparent,
            cast(extract("epoch", OutboxRow.published_at - OutboxRow.recorded_at), Float),
            # Evaluated once, when there is a row: saves a trip to the database.
            select(locks.share_holding()).scalar_subquery(),
            select(locks.LET_GO).scalar_subquery(),
        )
    )


_CLAIM = _claim(_WAITING)
_CLAIM_THESE = _claim(_WAITING.where(OutboxRow.id == func.any(_THESE)))


def claim(connection: Connection, limit: int, ids: Sequence[int] | None = None) -> list[Pending]:
    """Lock up to `limit` unpublished rows that no other publisher holds; they are marked, too.

    The oldest, in their order. Roll back if they do not go out. If there are any, no subscription
    starts or stops holding before the transaction ends.

    Args:
        connection: in a transaction; its end releases the rows.
        limit: the most rows of one batch.
        ids: only these rows; None for whatever waits.
    """
    given: dict[str, Any] = {"at_most": limit}
    if ids is None:
        rows = connection.execute(_CLAIM, given)
    else:
        rows = connection.execute(_CLAIM_THESE, {**given, "these": list(ids)})
    return sorted((Pending(*row[:-2]) for row in rows), key=lambda each: each.id)


def names(connection: Connection, column: Literal["source_module", "event_type"]) -> list[str]:
    """The different values of this column; reads the whole outbox."""
    return list(connection.scalars(select(getattr(OutboxRow, column)).distinct()))
