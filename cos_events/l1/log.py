"""`log_l1`: one L1 record and its event, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, cast, get_args
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import Table

from cos_events.capture import AnySession, watch
from cos_events.envelope import wrong_fields
from cos_events.errors import InvalidPayload
from cos_events.l1.content import Content, EventLogContent, PromptTraceContent
from cos_events.l1.models import BaseLog, EventLog, PromptTrace
from cos_events.recording import check_content, encode, make_envelope, record

EventType = Literal["prompt_trace", "event_log"]

_BASE_LOG = cast("Table", BaseLog.__table__)
KINDS: dict[str, tuple[type[Content], Table]] = {
    "prompt_trace": (PromptTraceContent, cast("Table", PromptTrace.__table__)),
    "event_log": (EventLogContent, cast("Table", EventLog.__table__)),
}
"""What each event type's content is, and where it is kept."""


def log_l1(  # noqa: PLR0913 - the fields of the record
    session: AnySession,
    event_type: EventType,
    data: Mapping[str, Any],
    *,
    occurred_at: datetime | None = None,
    module: str | None = None,
    trace_id: str | None = None,
    request_id: str | None = None,
) -> UUID:
    """Write an L1 record, and record its event, in the session's transaction.

    Does not commit: both are there, and the event goes out, if the caller's transaction commits.

    Args:
        session: a session on the bus's database.
        event_type: `prompt_trace` or `event_log`.
        data: its content: the fields of `PromptTraceContent` or `EventLogContent`; any others
            become attributes.
        occurred_at: when it happened, aware; now by default.
        module: the source module; `COS_EVENTS_MODULE` by default.
        trace_id: the trace that it belongs to; by default the current one, or that of the event
            whose handler runs, or a new one.
        request_id: the request that caused it; by default that of the current API request, or of
            the event whose handler runs.

    Returns:
        The record's id, which is the event's `base_log_id`.

    Raises:
        InvalidPayload: before anything is written; names the field and what is wrong with it.
    """
    check_content(data)
    if event_type not in get_args(EventType):
        raise InvalidPayload(
            f"cannot record this event: event_type: {event_type!r} is not prompt_trace or event_log"
        )
    content_type, table = KINDS[event_type]
    try:
        content = content_type.model_validate(dict(data)).model_dump()
    except ValidationError as error:
        raise InvalidPayload(f"cannot record this event: data.{wrong_fields(error)}") from error
    with watch(session):
        envelope = make_envelope(
            event_type=event_type,
            data=content,
            module=module,
            timestamp=occurred_at,
            trace_id=trace_id,
            request_id=request_id,
        )
    raw = encode(envelope)
    base_log = {
        "id": envelope.base_log_id,
        "source_module": envelope.source_module,
        "event_type": envelope.event_type,
        "occurred_at": envelope.timestamp,
        "trace_id": envelope.trace_id,
        "request_id": envelope.request_id,
    }
    described = {"base_log_id": envelope.base_log_id, **content}
    return record(session, envelope, raw, [(_BASE_LOG, base_log), (table, described)])
