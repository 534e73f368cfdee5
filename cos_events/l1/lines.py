"""JSON lines to L1 records, or to events alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue, Strict, ValidationError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from cos_events.envelope import Name, wrong_fields
from cos_events.error_text import one_line
from cos_events.errors import DatabaseAway, InvalidPayload
from cos_events.l1.log import EventType, log_l1
from cos_events.recording import record_event
from cos_events.store.engine import lacks_tables
from cos_events.telemetry import span
from cos_events.telemetry.names import COUNT, RECORD


class EventLine(BaseModel):
    """One line of the input, for an event of any type."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    event_type: Name
    data: dict[str, JsonValue]
    occurred_at: AwareDatetime | None = None
    request_id: Annotated[str, Strict()] | None = None
    trace_id: Annotated[str, Strict()] | None = None
    module: Name | None = None


class Line(EventLine):
    """One for an L1 record."""

    event_type: EventType


AnyLine = TypeVar("AnyLine", bound=EventLine)


@dataclass(slots=True)
class Summary:
    """What became of the lines."""

    recorded: int = 0
    refused: int = 0


Write = Callable[[Session, bytes], UUID]
"""Records a line in the session's transaction, as `log_line` and `record_line` do."""


def record_line(session: Session, raw: bytes) -> UUID:
    """Record the event of one JSON line in the session's transaction; returns its id.

    Raises:
        InvalidPayload: what is wrong with it; nothing was written.
    """
    line = _read(EventLine, raw)
    return record_event(
        session,
        line.event_type,
        line.data,
        timestamp=line.occurred_at,
        module=line.module,
        request_id=line.request_id,
        trace_id=line.trace_id,
    )


def log_line(session: Session, raw: bytes) -> UUID:
    """Write one JSON line to L1, with its event; returns the record's id.

    Raises:
        InvalidPayload: what is wrong with it; nothing was written.
    """
    line = _read(Line, raw)
    return log_l1(
        session,
        line.event_type,
        line.data,
        occurred_at=line.occurred_at,
        module=line.module,
        request_id=line.request_id,
        trace_id=line.trace_id,
    )


def record_lines(  # noqa: PLR0913 - the options of the command
    engine: Engine,
    lines: Iterable[bytes],
    *,
    batch: int,
    keep: Path,
    from_line: int = 1,
    write: Write = log_line,
    on_read: Callable[[int], None] = lambda _bytes: None,
    on_refused: Callable[[int, str], None] = lambda _line, _why: None,
) -> Summary:
    """Record each line with `write`, `batch` per transaction; keep refused ones in file `keep`.

    Raises:
        DatabaseAway: names the line from which to continue; all before it are committed.
    """
    summary = Summary()
    for numbered in _batches(lines, batch, from_line, on_read):
        try:
            refused = _write(engine, write, numbered)
        except DBAPIError as error:
            if lacks_tables(error):
                raise
            first, _ = numbered[0]
            raise DatabaseAway(
                f"stopped before line {first}, all earlier ones are recorded: "
                f"{one_line(error)}; continue with --from-line {first}"
            ) from error
        summary.recorded += len(numbered) - len(refused)
        for number, raw, why in refused:
            with keep.open("ab") as file:
                file.write(raw.removesuffix(b"\n") + b"\n")
            summary.refused += 1
            on_refused(number, why)
    return summary


def _batches(
    lines: Iterable[bytes], size: int, from_line: int, on_read: Callable[[int], None]
) -> Iterator[list[tuple[int, bytes]]]:
    """The lines that are not empty, each with its number."""
    batch: list[tuple[int, bytes]] = []
    for number, raw in enumerate(lines, start=1):
        on_read(len(raw))
        if number >= from_line and raw.strip():
            batch.append((number, raw))
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch


def _read(kind: type[AnyLine], raw: bytes) -> AnyLine:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise InvalidPayload(wrong_fields(error)) from error


def _write(
    engine: Engine, write: Write, lines: Sequence[tuple[int, bytes]]
) -> list[tuple[int, bytes, str]]:
    """Record these in one transaction; returns those that were refused, and why."""
    refused: list[tuple[int, bytes, str]] = []
    with span(RECORD, attributes={COUNT: len(lines)}), Session(engine) as session, session.begin():
        for number, raw in lines:
            try:
                write(session, raw)
            except InvalidPayload as why:
                refused.append((number, raw, str(why)))
    return refused
