"""`record_event`: an application says, inside its own transaction, what has happened."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from pydantic import ValidationError
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from cos_events import capture
from cos_events.envelope import Envelope, describe
from cos_events.errors import InvalidEnvelope, InvalidPayload
from cos_events.settings import get_settings
from cos_events.store.models import OutboxRow


def make_envelope(  # noqa: PLR0913 - the seven fields of the envelope
    *,
    event_type: str,
    data: Mapping[str, Any],
    base_log_id: UUID | None = None,
    module: str | None = None,
    timestamp: datetime | None = None,
    trace_id: str | None = None,
    request_id: str | None = None,
) -> Envelope:
    """A complete envelope, with what was left out filled in; see `record_event`.

    Raises:
        InvalidPayload: names the field and what is wrong with it.
    """
    try:
        return Envelope(
            base_log_id=base_log_id or uuid7(),
            source_module=module or get_settings().module,
            timestamp=timestamp or datetime.now(UTC),
            trace_id=trace_id or uuid4().hex,
            request_id=request_id or "",
            event_type=event_type,
            data=dict(data),
        )
    except ValidationError as error:
        raise InvalidPayload(f"cannot record this event: {describe(error)}") from error


def encode(envelope: Envelope) -> str:
    """The envelope's JSON, once it is certain that PostgreSQL and every subscriber can take it.

    Raises:
        InvalidPayload: too large, or holds what JSON or PostgreSQL cannot; names the field.
    """
    try:
        raw = envelope.encode()
        Envelope.decode(raw)
    except (ValueError, InvalidEnvelope) as error:
        raise InvalidPayload(
            f"cannot record this event: {_first_unencodable(envelope.data)}: {error}"
        ) from error
    if "\\u0000" in raw and (field := _first_with_nul(envelope)):
        raise InvalidPayload(
            f"cannot record this event: {field} holds a NUL character, "
            "which PostgreSQL cannot store; remove it"
        )
    size, limit = len(raw.encode()), get_settings().max_payload_bytes
    if size > limit:
        field = max(envelope.data, key=lambda key: len(_dump(envelope.data[key])))
        raise InvalidPayload(
            f"cannot record this event: it is {size:,} bytes, more than {limit:,}; its largest "
            f"field is data.{field}: shorten it, or raise COS_EVENTS_MAX_PAYLOAD_BYTES"
        )
    return raw


def record(session: Session, envelope: Envelope, raw: str) -> UUID:
    """Put an encoded envelope into the outbox, within the session's transaction."""
    capture.watch(session)
    session.add(
        OutboxRow(
            event_id=envelope.base_log_id,
            source_module=envelope.source_module,
            event_type=envelope.event_type,
            envelope=raw,
        )
    )
    return envelope.base_log_id


def record_event(  # noqa: PLR0913 - the fields of the envelope
    session: Session,
    event_type: str,
    data: Mapping[str, Any],
    *,
    base_log_id: UUID | None = None,
    module: str | None = None,
    timestamp: datetime | None = None,
    trace_id: str | None = None,
    request_id: str | None = None,
) -> UUID:
    """Record an event in the session's transaction: it goes out if, and only if, that commits.

    Writes one row when the session flushes; neither flushes nor commits.

    Args:
        session: any SQLAlchemy session on the bus's database (of an AsyncSession its
            `sync_session`).
        event_type: what happened, a lower-case name such as `event_log`.
        data: the content: JSON values under string keys.
        base_log_id: the event's identity; a new time-ordered UUID by default.
        module: the source module; `COS_EVENTS_MODULE` by default.
        timestamp: when it happened, aware; now by default.
        trace_id: the trace that it belongs to; a new one by default.
        request_id: the request that caused it; empty by default.

    Returns:
        The event's `base_log_id`.

    Raises:
        InvalidPayload: before anything is written; names the field that is no JSON, is too large
            or cannot be stored.
    """
    envelope = make_envelope(
        event_type=event_type,
        data=data,
        base_log_id=base_log_id,
        module=module,
        timestamp=timestamp,
        trace_id=trace_id,
        request_id=request_id,
    )
    return record(session, envelope, encode(envelope))


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f"{path}.{key}", key
            yield from _strings(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{path}.{index}")


def _first_with_nul(envelope: Envelope) -> str | None:
    fields = {"request_id": envelope.request_id, "trace_id": envelope.trace_id}
    texts = [*fields.items(), *_strings(envelope.data, "data")]
    return next((path for path, text in texts if "\0" in text), None)


def _first_unencodable(data: dict[str, Any]) -> str:
    for key, value in data.items():
        try:
            json.loads(_dump(value).encode())
        except ValueError:
            return f"data.{key}"
    return "data"
