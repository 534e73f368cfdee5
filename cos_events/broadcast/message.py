"""The form in which an envelope travels: plain, with what else must be known in the headers."""

from __future__ import annotations

import json
from typing import Any

from kombu.utils.uuid import uuid

from cos_events.broadcast.contract import Copy
from cos_events.task_message import EMBED, REDELIVERED, task_headers
from cos_events.telemetry import TRACEPARENT


def headers_of(traceparent: str | None) -> dict[str, Any]:
    """The headers of a broadcast envelope."""
    return {TRACEPARENT: traceparent} if traceparent else {}


def message_of(name: str, copy: Copy) -> tuple[str, dict[str, Any]]:
    """The body and headers of a copy for the subscription `name`.

    A first attempt is the plain envelope; only a task message can carry how many there were.
    """
    headers = headers_of(copy.traceparent)
    if copy.redelivered:
        headers[REDELIVERED] = True
    if copy.attempts == 0:
        return copy.envelope, headers
    task = task_headers(name, uuid(), "(<1 event>,)") | {"retries": copy.attempts}
    return json.dumps([[[copy.envelope]], {}, EMBED]), task | headers


def body_of(message: Any) -> bytes:
    """The bytes of a message's body, which kombu gives as text, bytes or a buffer."""
    body = message.body
    return bytes_of(body) if isinstance(body, str) else bytes(body)


def bytes_of(text: str) -> bytes:
    """The bytes of text that may hold surrogates: escaped bytes, or what JSON let through."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def text_of(message: Any) -> str:
    """A message's body as the text that `bytes_of` makes bytes of again, whatever it holds."""
    return body_of(message).decode("utf-8", "surrogateescape")
