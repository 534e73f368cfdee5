"""What a worker takes for a retry, and what it makes of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kombu.message import Message
from messages import Part

from cos_events import telemetry
from cos_events.incoming import MOST_RETRIES, retry_of
from cos_events.task_message import EMBED, REDELIVERED, task_headers

TASK_ID = "01234567-89ab-cdef-0123-456789abcdef"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def later(**wait: float) -> str:
    return (datetime.now(UTC) + timedelta(**wait)).isoformat()


def sent(argument: object = ("{}",), embed: object = EMBED, **headers: Any) -> Message:
    """A copy for a retry, as `deliver` sends it to queue q, but for these headers."""
    return Part(
        json.dumps([[argument], {}, embed]),
        content_type="application/json",
        content_encoding="utf-8",
        headers={**task_headers("q", TASK_ID, "(<1 event>,)"), "retries": 3, **headers},
    )


def test_a_retry_keeps_what_the_bus_wrote_into_it() -> None:
    eta = later(seconds=30)
    message = sent(["a", "b"], eta=eta, traceparent=TRACEPARENT, root_id="x", parent_id=None)
    task = retry_of(message)
    assert task is not None
    assert task.payload == [[["a", "b"]], {}, EMBED]
    kept = {"task": "q", "id": TASK_ID, "retries": 3, "eta": eta, REDELIVERED: False}
    assert task.headers.items() >= {**kept, telemetry.TRACEPARENT: TRACEPARENT}.items()
    assert task.headers["root_id"] != "x"
    task.ack()
    assert message.ended == "acknowledged"  # type: ignore[attr-defined] # a Part


def test_nothing_else_of_it_reaches_celery() -> None:
    strange = {"stamped_headers": 7, "timelimit": [1e308, "x"], "shadow": {}, "expires": "never"}
    task = retry_of(
        sent(embed={"callbacks": [{"task": "q"}]}, group={}, compression=None, **strange)
    )
    assert task is not None
    plain = task_headers("q", TASK_ID, "")
    assert {**task.headers, "argsrepr": ""}.items() >= {**plain, "retries": 3}.items()
    assert "stamped_headers" not in task.headers
    assert task.payload[2] == EMBED


@pytest.mark.parametrize(
    "eta", ["0001-01-01T00:00:00+14:00", later(seconds=-1)], ids=["long", "just now"]
)
def test_what_is_over_is_not_waited_for(eta: str) -> None:
    task = retry_of(sent(eta=eta))
    assert task is not None
    assert task.headers["eta"] is None


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(sent(retries=-1), id="fewer retries than none"),
        pytest.param(sent(retries=MOST_RETRIES + 1), id="more than the ledger can count"),
        pytest.param(sent(retries=True), id="a bool"),
        pytest.param(sent(retries="1"), id="text"),
        pytest.param(sent(eta=later(days=2)), id="in days"),
        pytest.param(sent(eta="9999-12-31T23:59:59-14:00"), id="in no time that there is"),
        pytest.param(sent(eta="2030-01-01T00:00:00"), id="without a zone"),
        pytest.param(sent(eta=7), id="a number for a time"),
        pytest.param(sent([1]), id="a number for an envelope"),
        pytest.param(sent("{}"), id="an envelope without a list"),
        pytest.param(sent(task="other"), id="another task"),
        pytest.param(Part("7", headers={"task": "q", "retries": 1}), id="no task message"),
        pytest.param(Part("[", headers=None), id="no headers"),
    ],
)
def test_whatever_else_it_is_it_is_no_retry(message: Message) -> None:
    assert retry_of(message) is None
