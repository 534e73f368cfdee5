"""Request ids: taken when well formed, made otherwise, and known to what runs inside."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import UUID

import pytest

from cos_events import context
from cos_events.api import RequestIdMiddleware
from cos_events.recording import make_envelope


@pytest.mark.parametrize("given", ["a", "req-7", "A.b_c:d/e+f=", "0" * 128])
def test_a_well_formed_id_is_taken(given: str) -> None:
    assert context.request_id_from(given) == given


@pytest.mark.parametrize("given", [None, "", " a", "-a", "a b", "a\nb", "é", "0" * 129, "<x>"])
def test_anything_else_gets_a_new_one(given: str | None) -> None:
    made = context.request_id_from(given)
    assert UUID(made).version == 7


def test_an_event_recorded_inside_a_request_has_its_id() -> None:
    with context.request("req-7"):
        assert make_envelope(event_type="x", data={}).request_id == "req-7"
        own = make_envelope(event_type="x", data={}, request_id="own")
    assert own.request_id == "own"
    assert make_envelope(event_type="x", data={}).request_id == ""


def test_each_log_record_has_the_id() -> None:
    record = logging.LogRecord("n", logging.INFO, "p", 1, "m", (), None)
    with context.request("req-7"):
        assert context.RequestIdFilter().filter(record)
    assert record.request_id == "req-7"  # type: ignore[attr-defined]
    context.RequestIdFilter().filter(record)
    assert record.request_id == "-"  # type: ignore[attr-defined]


async def inner(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers with the id it knows."""
    body = context.current_request_id().encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def answer(*headers: tuple[bytes, bytes]) -> tuple[str, str]:
    """The id on the response, and the one inside."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": list(headers)}
    asyncio.run(RequestIdMiddleware(inner)(scope, None, send))
    (name, value) = sent[0]["headers"][-1]
    assert name == b"x-request-id"
    return value.decode(), sent[1]["body"].decode()


def test_the_response_and_the_application_have_the_same_id() -> None:
    assert answer((b"X-Request-ID", b"req-7")) == ("req-7", "req-7")
    made, inside = answer((b"x-request-id", b"\xff"))
    assert made == inside
    assert UUID(made).version == 7
    assert context.current_request_id() == ""
