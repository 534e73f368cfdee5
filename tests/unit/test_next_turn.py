"""What a worker's event loop calls in its next turn."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from kombu.asynchronous import Hub
from kombu.message import Message

from cos_events.gathering import Queueing
from cos_events.incoming import TaskMessage, delivery_of
from cos_events.next_turn import NextTurn


class Loop:
    """Kombu's event loop, which notes when it would wait for an event."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.calls: list[str] = []
        # Kombu's loop waits for events only if there is something to read.
        self.silent = socket.socketpair()
        self.hub.add_reader(self.silent[0], print)
        poll = self.hub.poller.poll

        def impatient(_timeout: float) -> Any:
            events = poll(0)
            if not events:
                self.calls.append("waits")
            return events

        self.hub.poller.poll = impatient

    def call(self, name: str, then: Callable[[Callable[[], None]], object] | None = None) -> None:
        """Note this call, and have another one called soon."""
        self.calls.append(name)
        if then:
            then(partial(self.call, "soon"))

    def until(self, name: str) -> list[str]:
        """Run until this was called, or for ten turns; what happened up to then."""
        for _ in range(10):
            self.hub.run_once()
            if name in self.calls:
                return self.calls[: self.calls.index(name) + 1]
        return self.calls

    def close(self) -> None:
        """End it."""
        self.hub.close()
        for each in self.silent:
            each.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def next_turn(loop: Loop) -> Iterator[NextTurn]:
    made = NextTurn(loop.hub)
    yield made
    made.close()


def test_what_it_calls_can_call_soon_and_the_loop_waits_for_nothing_before(
    loop: Loop, next_turn: NextTurn
) -> None:
    next_turn(partial(loop.call, "first", loop.hub.call_soon))

    assert loop.until("soon") == ["first", "soon"]


def test_what_is_called_soon_can_have_it_call_and_the_loop_waits_for_nothing_before(
    loop: Loop, next_turn: NextTurn
) -> None:
    loop.hub.call_soon(partial(loop.call, "first", next_turn))

    assert loop.until("soon") == ["first", "soon"]


def test_kombus_timer_and_its_call_soon_both_make_the_loop_wait() -> None:
    """If this fails, Kombu does what `NextTurn` is for."""
    for by in ("timer", "call_soon"):
        loop = Loop()
        first = partial(loop.call, "first", loop.hub.call_soon)
        loop.hub.call_later(0, first) if by == "timer" else loop.hub.call_soon(first)

        assert loop.until("soon") == ["first", "waits", "soon"]
        loop.close()


def test_where_the_pool_is_the_loops_process_a_task_follows_the_last_ones_acknowledgement(
    loop: Loop, next_turn: NextTurn
) -> None:
    def run(task: TaskMessage) -> None:
        loop.calls.append("ran")
        loop.hub.call_soon(task.ack)

    lane = Queueing(run, lambda: 1, next_turn).lane(delivery_of)  # type: ignore[arg-type] # a TaskMessage
    for tag in range(2):
        part = Message(body="{}", delivery_tag=tag, delivery_info={"routing_key": "q"})
        part.ack = lambda **_: None
        loop.hub.call_soon(partial(lane.add, part))

    loop.until("never")
    assert loop.calls[:2] == ["ran", "ran"]


def test_another_thread_wakes_the_loop(loop: Loop, next_turn: NextTurn) -> None:
    thread = threading.Thread(target=next_turn, args=(partial(loop.call, "from a thread"),))
    thread.start()
    thread.join()

    assert loop.until("from a thread") == ["from a thread"]


def test_a_hundred_thousand_calls_are_all_made(loop: Loop, next_turn: NextTurn) -> None:
    count = 100_000
    for _ in range(count):
        next_turn(partial(loop.call, "one"))
    next_turn(partial(loop.call, "last"))

    assert loop.until("last") == ["one"] * count + ["last"]


def test_one_that_fails_is_logged_and_the_next_one_called(
    loop: Loop, next_turn: NextTurn, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("broken")

    next_turn(fail)
    next_turn(partial(loop.call, "next"))

    with caplog.at_level(logging.ERROR, NextTurn.__module__):
        assert loop.until("next") == ["next"]
    assert "broken" in caplog.text


def test_a_lost_connection_reaches_the_worker(loop: Loop, next_turn: NextTurn) -> None:
    def lose() -> None:
        raise ConnectionResetError

    loop.hub.propagate_errors = (OSError,)
    next_turn(lose)

    with pytest.raises(ConnectionResetError):
        loop.until("never")


def test_once_closed_it_calls_nothing_and_refuses_nothing(loop: Loop) -> None:
    next_turn = NextTurn(loop.hub)
    next_turn(partial(loop.call, "before"))
    next_turn.close()
    next_turn(partial(loop.call, "after"))

    assert set(loop.until("after")) == {"waits"}


def test_it_can_be_closed_after_the_loop_was_reset(loop: Loop) -> None:
    next_turn = NextTurn(loop.hub)
    loop.hub.reset()

    next_turn.close()
