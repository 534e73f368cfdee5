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

    A first attempt is the plain envelope; only a task message can say how many there were.
    """
    headers = headers_of(copy.traceparent)
    if copy.redelivered:
        headers[REDELIVERED] = True
    if copy.attempts == 0:
        return copy.envelope, headers
    task = task_headers(name, uuid(), "(<1 event>,)") | {"retries": copy.attempts}
    return json.dumps([[[copy.envelope]], {}, EMBED]), task | headers
