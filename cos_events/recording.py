"""`record_event`: an application says, inside its own transaction, what has happened."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from pydantic import JsonValue, ValidationError
from uuid_utils.compat import uuid7

from cos_events import capture, context, telemetry
from cos_events.capture import AnySession
from cos_events.envelope import Envelope, why_no_name, wrong_fields
from cos_events.errors import InvalidEnvelope, InvalidPayload
from cos_events.settings import get_settings
from cos_events.store.models import Companion, OutboxRow

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


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
    """A complete envelope, with defaults for what was left out; see `record_event`.

    Raises:
        InvalidPayload: names the field and what is wrong with it.
    """
    check_content(data)
    source_module = module or get_settings().module
    try:
        return Envelope(
            base_log_id=base_log_id or uuid7(),
            source_module=source_module,
            timestamp=timestamp or datetime.now(UTC),
            trace_id=trace_id or _current_trace_id() or uuid4().hex,
            request_id=request_id or context.current_request_id(),
            event_type=event_type,
            data=dict(data),
        )
    except ValidationError as error:
        names = (("an event type", event_type), ("a module", source_module))
        no_name = next(filter(None, (why_no_name(*each) for each in names)), None)
        raise InvalidPayload(
            f"cannot record this event: {no_name or wrong_fields(error)}"
        ) from error


def _current_trace_id() -> str:
    return telemetry.current_trace_id() or context.current_trace_id()


def check_content(data: object) -> None:
    """Refuse what is not a mapping.

    Raises:
        InvalidPayload: says what it is.
    """
    if not isinstance(data, Mapping):
        kind = type(data).__name__
        raise InvalidPayload(f"cannot record this event: data must be a mapping, not {kind}")


def encode(envelope: Envelope) -> str:
    """The envelope's JSON, once checked that PostgreSQL and every subscriber can take it.

    Raises:
        InvalidPayload: too large, or holds what JSON or PostgreSQL cannot; names the field.
    """
    for path, value in _strings(envelope):
        if "\0" in value:
            raise InvalidPayload(
                f"cannot record this event: {path} holds a NUL character, "
                "which PostgreSQL cannot store; remove it"
            )
        if not value.isascii() and _LONE_SURROGATE.search(value):
            raise InvalidPayload(f"cannot record this event: {path} is not valid Unicode text")
    try:
        raw = envelope.encode()
        Envelope.decode(raw)
    except (ValueError, InvalidEnvelope) as error:
        field = _first_unencodable(envelope)
        raise InvalidPayload(f"cannot record this event: {field}: {error}") from error
    size, limit = len(raw.encode()), get_settings().max_payload_bytes
    if size > limit:
        raise InvalidPayload(
            f"cannot record this event: it is {size:,} bytes, more than {limit:,}; its largest "
            f"field is {_largest(envelope)}: shorten it, or raise COS_EVENTS_MAX_PAYLOAD_BYTES"
        )
    return raw


def record(
    session: AnySession, envelope: Envelope, raw: str, companions: Sequence[Companion] = ()
) -> UUID:
    """Put an encoded envelope into the outbox, within the session's transaction.

    Args:
        session: whose next flush writes it.
        envelope: the event.
        raw: its JSON.
        companions: rows of other tables that are written with it.

    Returns:
        The event's `base_log_id`.
    """
    with capture.watch(session):
        traceparent = telemetry.current_traceparent()
    session.add(
        OutboxRow(
            companions,
            event_id=envelope.base_log_id,
            source_module=envelope.source_module,
            event_type=envelope.event_type,
            envelope=raw,
            traceparent=traceparent,
        )
    )
    return envelope.base_log_id


def record_event(  # noqa: PLR0913 - the fields of the envelope
    session: AnySession,
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
        session: any SQLAlchemy session on the bus's database, even an AsyncSession.
        event_type: what happened, a lower-case name such as `event_log`.
        data: the content: JSON values under string keys.
        base_log_id: the event's identity; a new time-ordered UUID by default.
        module: the source module; `COS_EVENTS_MODULE` by default.
        timestamp: when it happened, aware; now by default.
        trace_id: the trace that it belongs to; by default the current one, or that of the event
            whose handler runs, or a new one.
        request_id: the request that caused it; by default that of the current API request, or of
            the event whose handler runs.

    Returns:
        The event's `base_log_id`.

    Raises:
        InvalidPayload: before anything is written; names the field that is not JSON, is too
            large or cannot be stored.
        TypeError: it is not a session.
    """
    with capture.watch(session):
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


def _strings(envelope: Envelope) -> Iterator[tuple[str, str]]:
    """Every text in the envelope, keys too, with the path to it; depth first, without recursion."""
    waiting: list[tuple[str, JsonValue]] = [
        ("request_id", envelope.request_id),
        ("trace_id", envelope.trace_id),
        ("data", envelope.data),
    ]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, dict):
            for key, item in value.items():
                below = f"{path}.{key}".replace("\0", "\\0")
                yield below, key
                waiting.append((below, item))
        elif isinstance(value, list):
            waiting += [(f"{path}.{index}", item) for index, item in enumerate(value)]


def _first_unencodable(envelope: Envelope) -> str:
    for key, value in envelope.data.items():
        try:
            Envelope.decode(envelope.model_copy(update={"data": {key: value}}).encode())
        except (ValueError, InvalidEnvelope):
            return f"data.{key}"
    return "data"


def _largest(envelope: Envelope) -> str:
    fields: dict[str, JsonValue] = {
        "request_id": envelope.request_id,
        "trace_id": envelope.trace_id,
        **{f"data.{key}": value for key, value in envelope.data.items()},
    }
    return max(fields, key=lambda name: len(json.dumps(fields[name], ensure_ascii=False).encode()))
