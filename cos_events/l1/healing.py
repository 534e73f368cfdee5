"""L1 rows that were written without `log_l1`, by raw SQL or COPY, and so have no event."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, joinedload

from cos_events.errors import InvalidPayload
from cos_events.l1.log import KINDS
from cos_events.l1.models import BaseLog
from cos_events.recording import encode, make_envelope
from cos_events.selection import Selection
from cos_events.store import locks, retention
from cos_events.store.models import OutboxRow

PAGE = 5_000
"""L1 rows that are examined in one statement."""


@dataclass(slots=True)
class Unrecorded:
    """L1 rows without an event.

    Attributes:
        found: how many there are.
        healed: how many have one now.
        refused: the ids of those that cannot be an event, with the reason.
    """

    found: int = 0
    healed: int = 0
    refused: dict[UUID, str] = field(default_factory=dict)


def count(connection: Connection, selection: Selection) -> int:
    """How many L1 rows are looked at."""
    return (
        connection.scalar(select(func.count(BaseLog.id)).where(*_conditions(connection, selection)))
        or 0
    )


def find(
    engine: Engine,
    selection: Selection,
    *,
    heal: bool,
    on_done: Callable[[int], object] = lambda _: None,
) -> Unrecorded:
    """Find the L1 rows that have no event, and give them one if `heal` is set.

    Rows older than what retention has dropped are not examined. Each page is one transaction; two
    that heal at once give a row only one event.

    Args:
        engine: on the bus's database.
        selection: which rows.
        heal: record their events; publishers then find them.
        on_done: told how many more rows were looked at.
    """
    result = Unrecorded()
    for page in _pages(engine, selection):
        with Session(engine) as session, session.begin():
            looked_at = _kept(session.connection(), selection, page) if heal else page
            known = select(OutboxRow.event_id).where(OutboxRow.event_id == func.any(list(page)))
            missing = set(looked_at) - set(session.scalars(known))
            result.found += len(missing)
            if heal and missing:
                _heal(session, missing, result)
        on_done(len(page))
    return result


def _kept(connection: Connection, selection: Selection, page: Sequence[UUID]) -> Sequence[UUID]:
    """Those that retention keeps as long as the transaction lasts."""
    # What it dropped meanwhile would look as if it had never been recorded.
    locks.retention(connection)
    conditions = _conditions(connection, selection)
    return connection.scalars(
        select(BaseLog.id).where(BaseLog.id == func.any(list(page)), *conditions)
    ).all()


def _pages(engine: Engine, selection: Selection) -> Iterator[Sequence[UUID]]:
    after = UUID(int=0)
    while True:
        with engine.connect() as connection:
            conditions = _conditions(connection, selection)
            page = connection.scalars(
                select(BaseLog.id)
                .where(BaseLog.id > after, *conditions)
                .order_by(BaseLog.id)
                .limit(PAGE)
            ).all()
        if page:
            yield page
        if len(page) < PAGE:
            return
        after = page[-1]


def _conditions(connection: Connection, selection: Selection) -> list[ColumnElement[bool]]:
    asked: list[ColumnElement[bool]] = []
    if (complete_from := retention.dropped_before(connection)) is not None:
        asked.append(BaseLog.recorded_at >= complete_from)
    return asked + selection.conditions(BaseLog)


def _heal(session: Session, ids: set[UUID], result: Unrecorded) -> None:
    rows = session.scalars(
        select(BaseLog)
        .where(BaseLog.id == func.any(list(ids)))
        .options(joinedload(BaseLog.prompt_trace), joinedload(BaseLog.event_log))
        .order_by(BaseLog.recorded_at, BaseLog.id)
    )
    for base_log in rows:
        try:
            values = _event_of(base_log)
        except InvalidPayload as error:
            result.refused[base_log.id] = str(error)
            continue
        written = session.execute(insert(OutboxRow).values(values).on_conflict_do_nothing())
        result.healed += written.rowcount  # type: ignore[attr-defined]


def _event_of(base_log: BaseLog) -> dict[str, object]:
    kind = base_log.event_type
    if kind not in KINDS or (content := getattr(base_log, kind)) is None:
        raise InvalidPayload(f"its content is missing: there is no row of {kind!r} for it")
    content_type, _ = KINDS[kind]
    data = {name: getattr(content, name) for name in content_type.model_fields}
    envelope = make_envelope(
        event_type=kind,
        data=data,
        base_log_id=base_log.id,
        module=base_log.source_module,
        timestamp=base_log.occurred_at,
        trace_id=base_log.trace_id,
        request_id=base_log.request_id,
    )
    return {
        "event_id": envelope.base_log_id,
        "source_module": envelope.source_module,
        "event_type": envelope.event_type,
        "envelope": encode(envelope),
    }
