"""Statements on the delivery ledger: who has received which event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Float,
    Integer,
    Interval,
    Row,
    Table,
    Text,
    Uuid,
    and_,
    bindparam,
    extract,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert
from sqlalchemy.orm import Session

from cos_events.store.conditions import expected
from cos_events.store.models import AT_ONCE, DeliveryRow, DeliveryState, OutboxRow

Executor = Connection | Session

_OUTBOX = OutboxRow.__table__.c
_TABLE = cast("Table", DeliveryRow.__table__)
_DELIVERY = _TABLE.c


# Each delivery runs these two: built once, since building one costs more than running it.
_SUBSCRIPTION = bindparam("for_subscription", type_=Text)
_IS_ONE_OF_THEM = _OUTBOX.event_id == func.any(bindparam("for_events", type_=ARRAY(Uuid)))


def _may_run(attempts: ColumnElement[int]) -> ColumnElement[bool]:
    # An old copy of an event that waits for its retry must not run before that: it would start a
    # second chain of retries.
    return and_(
        _DELIVERY.state == "retrying",
        or_(_DELIVERY.attempts < attempts, _DELIVERY.next_attempt_at <= func.now()),
    )


def from_outbox(values: Mapping[str, Any], *which: ColumnElement[bool]) -> Insert:
    """An INSERT of a delivery row for each of these events in the outbox.

    Args:
        values: of the columns; `event_id` and `outbox_id` are the event's own if not given;
            expressions, or plain values.
        which: the events.
    """
    row = {"event_id": _OUTBOX.event_id, "outbox_id": _OUTBOX.id, **values}
    columns: list[Any] = [
        literal(each) if isinstance(each, str | int | datetime) else each for each in row.values()
    ]
    return insert(_TABLE).from_select(list(row), select(*columns).where(*which))


def _unless_ended(
    subscription: ColumnElement[str] | str, values: Mapping[str, Any], which: ColumnElement[bool]
) -> Insert:
    """`from_outbox` for events whose copies arrived, except those that have ended here.

    Their rows would conflict anyway, unless retention is dropping them: a statement that still sees
    such an event would wait for that row to go, and then insert it again. But it also still sees
    that row.
    """
    ended = (
        select(or_(DeliveryRow.state == "delivered", DeliveryRow.state == "discarded"))
        .where(DeliveryRow.subscription == subscription, DeliveryRow.event_id == _OUTBOX.event_id)
        .correlate(OutboxRow)
        .scalar_subquery()
    )
    return from_outbox({"subscription": subscription, **values}, which, ended.is_not(true()))


_AGE = (
    select(sql_cast(extract("epoch", func.clock_timestamp() - _OUTBOX.recorded_at), Float))
    # As text: SQLAlchemy does not correlate a subquery with the table of an INSERT.
    .where(_OUTBOX.id == literal_column("cos_events.delivery.outbox_id"))
    .scalar_subquery()
    .label("age")
)
"""Seconds since the event was recorded."""


def _make_upsert() -> Executable:
    given = ("state", "attempts", "deaths", "error")
    written = {
        **{name: bindparam(f"new_{name}", type_=_DELIVERY[name].type) for name in given},
        # By PostgreSQL's clock, which also decides when that has passed.
        "next_attempt_at": func.now() + bindparam("new_wait", type_=Interval),
    }
    statement = _unless_ended(_SUBSCRIPTION, written, _IS_ONE_OF_THEM)
    return statement.on_conflict_do_update(
        index_elements=["subscription", "event_id"],
        set_={**{name: statement.excluded[name] for name in written}, "updated_at": func.now()},
        where=_may_run(statement.excluded.attempts),
    ).returning(_DELIVERY.event_id, _DELIVERY.created_at, _AGE, _DELIVERY.correction)


_UPSERT = _make_upsert()

_HAD = (
    select(
        func.coalesce(_may_run(bindparam("new_attempts", type_=Integer)), false()).label("due"),
        _DELIVERY.correction,
    )
    .where(_DELIVERY.subscription == _SUBSCRIPTION, _DELIVERY.event_id == _OUTBOX.event_id)
    # Must not become a join: PostgreSQL would read all rows of a small ledger for a batch.
    .limit(1)
    .lateral()
)
_DUE = (
    select(_OUTBOX.event_id, func.coalesce(_HAD.c.due, true()).label("due"), _HAD.c.correction)
    .select_from(OutboxRow.__table__.outerjoin(_HAD, true()))
    .where(_IS_ONE_OF_THEM)
)


class Settled(NamedTuple):
    """Notes that the subscription has now received an event that it had not received before.

    Attributes:
        age: seconds since the event was recorded.
        correction: the envelope that a person wants handled instead.
    """

    age: float
    correction: str | None


class Due(NamedTuple):
    """Whether an event may be handled, and `correction` as above."""

    due: bool
    correction: str | None


def settle(
    executor: Executor, subscription: str, event_ids: Iterable[UUID], attempts: int
) -> dict[UUID, Settled]:
    """Write that the subscription has received these events.

    Committed with the handler's own work, this makes the effect happen exactly once: a second copy
    waits here for the first one's transaction and then is not among those returned. Neither is an
    event that was never recorded in this database.

    Returns:
        Those that it had not received before.
    """
    rows = _upsert(executor, subscription, event_ids, state="delivered", attempts=attempts)
    return {row.event_id: Settled(row.age, row.correction) for row in rows}


def note_failure(  # noqa: PLR0913 - the columns of the row
    executor: Executor,
    subscription: str,
    event_id: UUID,
    *,
    state: DeliveryState,
    attempts: int,
    error: str,
    wait: timedelta | None,
    deaths: int = 0,
) -> datetime | None:
    """Write what failed, and how long from now it waits; `deaths` counts those in a row.

    Returns:
        When it first failed; None if the event is delivered or dead, and nothing was written.
    """
    written = _upsert(
        executor,
        subscription,
        [event_id],
        state=state,
        attempts=attempts,
        error=error,
        wait=wait,
        deaths=deaths,
    )
    return next((row.created_at for row in written), None)


def _upsert(
    executor: Executor, subscription: str, event_ids: Iterable[UUID], **values: Any
) -> Sequence[Row[Any]]:
    values = {"error": None, "wait": None, "deaths": 0, **values}
    return executor.execute(
        _UPSERT,
        {
            "for_subscription": subscription,
            "for_events": list(event_ids),
            **{f"new_{name}": value for name, value in values.items()},
        },
    ).all()


def hold(executor: Executor, subscription: str, event_ids: Iterable[UUID]) -> None:
    """Let these events wait here until their subscription resumes; no attempt is counted."""
    statement = _unless_ended(
        subscription,
        {"state": "held", "attempts": 0, "next_attempt_at": AT_ONCE},
        OutboxRow.event_id == func.any(list(event_ids)),
    )
    executor.execute(
        statement.on_conflict_do_update(
            index_elements=["subscription", "event_id"],
            set_={"state": "held", "next_attempt_at": AT_ONCE, "updated_at": func.now()},
            where=or_(DeliveryRow.state == "retrying", expected()),
        )
    )


def count_death(executor: Executor, subscription: str, event_id: UUID) -> int:
    """Count that a process died, or may have died, from this event; returns how often so far.

    Nothing is counted for what is delivered or dead, or was never recorded; then it returns 0.
    """
    statement = _unless_ended(
        subscription,
        {"state": "retrying", "attempts": 0, "deaths": 1, "next_attempt_at": func.now()},
        OutboxRow.event_id == event_id,
    )
    deaths: int | None = executor.scalar(
        statement.on_conflict_do_update(
            index_elements=["subscription", "event_id"],
            set_={"deaths": DeliveryRow.deaths + 1},
            where=DeliveryRow.state == "retrying",
        ).returning(DeliveryRow.deaths)
    )
    return deaths or 0


def due(
    executor: Executor, subscription: str, event_ids: Iterable[UUID], attempts: int
) -> dict[UUID, Due]:
    """Whether attempt `attempts` at each of these events may run; unrecorded ones are absent."""
    rows = executor.execute(
        _DUE,
        {
            "for_subscription": subscription,
            "for_events": list(event_ids),
            "new_attempts": attempts,
        },
    )
    return {row.event_id: Due(row.due, row.correction) for row in rows}
