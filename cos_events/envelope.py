"""The message: what goes over both wires for one committed event, and nothing else."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    ValidationError,
)

from cos_events.errors import InvalidEnvelope
from cos_events.printable import printable

NAME_PATTERN = r"^[a-z][a-z0-9_]{0,62}$"
"""What a source module, an event type and a subscription may be called: a lower-case identifier."""

_NAME = re.compile(NAME_PATTERN.removesuffix("$"))

_NAME_RULE = "use a lower-case letter, then up to 62 lower-case letters, digits and underscores"

_RFC3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def why_no_name(what: str, name: object) -> str:
    """A sentence on why this cannot be the name of `what`, such as "a module"; empty if it can."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return ""
    return f"{name!r:.80} cannot name {what}: {_NAME_RULE}"


def format_timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with six digits of a second: `2025-06-18T10:30:00.123456Z`."""
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _parse_timestamp(value: object) -> object:
    if isinstance(value, str):
        if not _RFC3339_UTC.fullmatch(value):
            raise ValueError("must look like 2025-06-18T10:30:00.123456Z")
        return datetime.fromisoformat(value)
    return value


def _to_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be within the years 1 to 9999 in UTC") from None


if TYPE_CHECKING:
    # As json.loads is typed: who recorded it knows what it holds, and JsonValue would be asked for
    # its type at each step down.
    JsonObject = dict[str, Any]
else:
    JsonObject = dict[str, JsonValue]

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Timestamp = Annotated[
    AwareDatetime,
    BeforeValidator(_parse_timestamp),
    AfterValidator(_to_utc),
    PlainSerializer(format_timestamp, return_type=str),
]


class Envelope(BaseModel):
    """One committed event, as every subscriber sees it.

    Immutable. Exactly these seven fields travel; one too many or too few is an error.

    Attributes:
        base_log_id: the event's identity; a second copy with the same id is the same event.
        source_module: who recorded it; the channel and the exchange are `mem0.recorded.<module>`.
        timestamp: when it happened; aware, UTC, microseconds.
        trace_id: the trace that the write belonged to.
        request_id: the request that caused it; empty where there was none.
        event_type: `prompt_trace` or `event_log` from L1; other applications name their own.
        data: the content, a JSON object.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    base_log_id: UUID
    source_module: Name
    timestamp: Timestamp
    trace_id: str
    request_id: str
    event_type: Name
    data: JsonObject

    def encode(self) -> str:
        """The JSON text of this envelope."""
        return self.model_dump_json()

    @classmethod
    def decode(cls, raw: str | bytes) -> Self:
        """Read an envelope from its JSON.

        Raises:
            InvalidEnvelope: the text is not JSON, or not this object; names the field.
        """
        try:
            envelope = cls.model_validate_json(raw)
            # Pydantic lets NaN and 1e999 through when it reads JSON, but not in Python's values.
            _Content.model_validate({"data": envelope.data})
        except ValidationError as error:
            raise InvalidEnvelope(f"not an envelope: {wrong_fields(error)}") from error
        return envelope


class _Content(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    data: JsonObject


def wrong_fields(error: ValidationError) -> str:
    """One line that names each wrong field and why, without quoting the content."""
    problems = error.errors(include_url=False, include_context=False)
    return "; ".join(f"{_path(problem['loc'])}{_message(problem)}" for problem in problems[:5])


def _message(problem: Any) -> str:
    match problem["type"]:
        case "invalid-json-value":
            kind = type(problem["input"]).__name__
            return f"{kind} is not a JSON value: make it text, a number, a list or a dict"
        case "string_pattern_mismatch":
            return f"is not a valid name: {_NAME_RULE}"
        case _:
            return str(problem["msg"])


def _path(location: tuple[Any, ...]) -> str:
    # Below a JSON value pydantic names, after each key, the kind that it tried there.
    keys = [printable(str(key)[:64]) for key in location[:1] + location[1::2]]
    if len(keys) > 6:
        keys[6:] = ["…"]
    return f"{'.'.join(keys)}: " if keys else ""
