"""Several messages in one task, each a call of its own: while all processes are busy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from kombu.message import Message
from outages import postgres_away

from cos_events import Envelope
from cos_events.broadcast.message import body_of
from cos_events.recording import make_envelope
from cos_events.store import deliveries

if TYPE_CHECKING:
    from conftest import Bus

AT_ONCE: dict[str, Any] = {"retry_backoff": False, "default_retry_delay": 0}


def test_each_message_is_a_call_and_only_the_one_that_fails_is_tried_again(bus: Bus) -> None:
    calls: list[int] = []

    def handle(message: Envelope) -> None:
        calls.append(message.data["n"])
        if calls.count(1) == 1 and message.data["n"] == 1:
            raise ValueError("one")

    name = bus.declare(handle, **AT_ONCE)
    raws = [bus.record(n=n) for n in range(3)]
    assert bus.run(name, *raws) == "SUCCESS"
    assert calls == [0, 1, 2]
    assert [bus.state(name, raw) for raw in raws] == ["delivered", "retrying", "delivered"]
    assert bus.run_queued(name) == 1
    assert calls == [0, 1, 2, 1]
    assert bus.state(name, raws[1]) == "delivered"


def test_what_was_had_already_is_not_called_again_and_garbage_hurts_nobody(bus: Bus) -> None:
    calls: list[int] = []
    name = bus.declare(lambda message: calls.append(message.data["n"]))
    raws = [bus.record(n=n) for n in range(3)]
    assert bus.run(name, raws[1]) == "SUCCESS"
    assert bus.run(name, raws[0], "garbage", raws[1], raws[2]) == "SUCCESS"
    assert calls == [1, 0, 2]
    assert [bus.state(name, raw) for raw in raws] == ["delivered"] * 3
    assert len(bus.dead_letters(name)) == 1


@pytest.mark.parametrize("statement", ["due", "settle"])
def test_when_the_ledger_is_away_all_of_them_come_again_and_no_attempt_is_counted(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None], statement: str
) -> None:
    name = bus.declare(lambda _message: None, **AT_ONCE)
    raws = [bus.record(n=n) for n in range(2)]
    with monkeypatch.context() as patched:
        patched.setattr(deliveries, statement, postgres_away)
        bus.run(name, *raws)
    assert [bus.row(name, raw) for raw in raws] == [None, None]
    queued: list[Message] = []
    eventually(lambda: queued.extend(bus.queued(name)) or len(queued) == 2)
    assert [message.payload[0][0][0] for message in queued] == raws
    assert {message.headers["retries"] for message in queued} == {0}


def test_an_envelope_that_was_never_recorded_here_is_a_dead_letter_and_the_others_run(
    bus: Bus,
) -> None:
    calls: list[int] = []
    name = bus.declare(lambda message: calls.append(message.data["n"]))
    stranger = make_envelope(event_type="event_log", module=bus.module, data={"n": 9}).encode()
    assert bus.run(name, bus.record(n=0), stranger, bus.record(n=1)) == "SUCCESS"
    assert calls == [0, 1]
    (letter,) = bus.dead_letters(name)
    assert body_of(letter).decode() == stranger
