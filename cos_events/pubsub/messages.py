"""What travels on a channel: JSON, most often an envelope."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from cos_events.envelope import Envelope, wrong_fields
from cos_events.errors import InvalidEnvelope, InvalidPayload
from cos_events.printable import printable
from cos_events.settings import get_settings

logger = logging.getLogger(__name__)

Message: TypeAlias = Envelope | dict[str, Any] | list[Any] | str | float | bool | None
"""What can be published; a text is treated as JSON that is already encoded."""

_JSON = TypeAdapter(
    dict[str, dict[str, JsonValue]], config=ConfigDict(strict=True, allow_inf_nan=False)
)

_MAX_CHANNEL = 256

_skipped: Counter[str] = Counter()


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """One message as a subscriber sees it.

    Attributes:
        channel: where it was published, even when a pattern was subscribed to.
        data: what was published: text, or bytes if `REDIS_DECODE_RESPONSES` is false.
        content: the same, decoded: an `Envelope` if it is one, otherwise a JSON value.
    """

    channel: str
    data: str | bytes
    content: Envelope | JsonValue


def check_channel(name: str) -> None:
    """Refuse what cannot be a channel's name or pattern.

    Raises:
        InvalidPayload: says why.
    """
    if not isinstance(name, str):
        raise InvalidPayload(f"the channel's name must be text, not {type(name).__name__}")
    if not name:
        raise InvalidPayload("the channel's name must not be empty")
    if len(name) > _MAX_CHANNEL:
        raise InvalidPayload(
            f"the channel's name has {len(name):,} characters, more than {_MAX_CHANNEL}"
        )
    if " " in name or not name.isprintable():
        raise InvalidPayload(
            f"the channel's name {name!a} must not hold white space, control or other "
            "unprintable characters"
        )


def encode(message: Message) -> bytes:
    """The message's JSON.

    Raises:
        InvalidPayload: it is not JSON, or too large; names the field, never quotes the content.
    """
    try:
        if isinstance(message, Envelope):
            raw = message.encode().encode()
        elif isinstance(message, str):
            raw = message.encode()
            _check_size(raw)
            _check_value(from_json(raw, allow_inf_nan=False))
        else:
            _check_value(message)
            raw = to_json(message)
    except ValidationError as error:
        raise InvalidPayload(f"cannot publish this: {wrong_fields(error)}") from error
    except InvalidPayload:
        raise
    except UnicodeError as error:
        raise InvalidPayload("cannot publish this: it is not valid Unicode text") from error
    except ValueError as error:
        raise InvalidPayload(f"cannot publish this: it is not JSON: {error}") from error
    _check_size(raw)
    return raw


def _check_value(value: object) -> None:
    # The names are the beginning of an error's path: `message.a.b: input was not a valid JSON …`.
    _JSON.validate_python({"message": value if isinstance(value, dict) else {"value": value}})


def _check_size(raw: bytes) -> None:
    if len(raw) > (limit := get_settings().max_payload_bytes):
        raise InvalidPayload(
            f"cannot publish this: it is {len(raw):,} bytes, more than {limit:,}; shorten it, or "
            "raise COS_EVENTS_MAX_PAYLOAD_BYTES"
        )


def decode(subscribed_to: str, message: dict[str, Any]) -> ReceivedMessage | None:
    """What redis-py received, for the listener; None if it is not a message, or not JSON."""
    if message["type"] not in ("message", "pmessage"):
        return None
    raw: bytes = message["data"]
    channel = message["channel"].decode(errors="backslashreplace")
    try:
        data = raw.decode() if get_settings().redis_decode_responses else raw
        return ReceivedMessage(channel, data, _content(raw))
    except ValueError as error:
        _skipped[subscribed_to] += 1
        logger.warning(
            "skipped %d bytes on %s that are not JSON: %s", len(raw), printable(channel), error
        )
        return None


def _content(raw: bytes) -> Envelope | JsonValue:
    try:
        return Envelope.decode(raw)
    except InvalidEnvelope:
        value: JsonValue = from_json(raw, allow_inf_nan=False)
        return value


def skipped_messages() -> dict[str, int]:
    """How many messages this process could not decode, by what was subscribed to."""
    return dict(_skipped)
