"""The background thread that wakes the publish task: gathers, counts, never raises, never waits."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery.concurrency.prefork import process_destructor

from cos_events import dispatcher, telemetry
from cos_events.circuit_breaker import CircuitBreaker
from cos_events.dispatcher import MAX_IDS, MAX_WAITING, Dispatcher

INTERVAL = 0.003


class Sender:
    """Remembers what was sent; can be blocked, and told to fail."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()
        self.error: Exception | None = None

    def __call__(self, ids: list[int]) -> None:
        self.calls.append(ids)
        self.entered.release()
        self.open.wait(30)
        if self.error is not None:
            raise self.error


@pytest.fixture
def send() -> Iterator[Sender]:
    sender = Sender()
    yield sender
    sender.open.set()


@pytest.fixture
def made(send: Sender) -> Iterator[Dispatcher]:
    running = Dispatcher(send, INTERVAL)
    yield running
    send.open.set()
    running.close()


@pytest.fixture
def fresh(monkeypatch) -> Iterator[None]:
    """This process has not started its dispatcher; afterwards it is ended."""
    dispatcher.reset()
    yield
    monkeypatch.undo()
    dispatcher.reset()


def block(made: Dispatcher, send: Sender) -> None:
    """Have the thread hang in the sending of id 0."""
    send.open.clear()
    made.wake([0])
    assert send.entered.acquire(timeout=10)


def test_a_wake_up_is_sent_by_another_thread(made: Dispatcher, send: Sender) -> None:
    made.wake([1, 2])
    assert send.entered.acquire(timeout=10)
    made.close()
    assert (send.calls, made.sent, made.dropped) == ([[1, 2]], 2, 0)


def test_what_comes_meanwhile_goes_out_in_one_call(made: Dispatcher, send: Sender) -> None:
    block(made, send)
    for each in range(1, 101):
        made.wake([each])
    send.open.set()
    made.close()
    assert send.calls == [[0], list(range(1, 101))]
    assert made.sent == 101


def test_commits_within_the_interval_share_a_call_and_closing_does_not_wait_for_its_end(
    send: Sender,
) -> None:
    made = Dispatcher(send, 60.0)
    for after_a_pause in range(2):
        made.wake([after_a_pause])
        assert send.entered.acquire(timeout=10)
    made.wake([2])
    assert not send.entered.acquire(timeout=0.1)
    made.wake([3, 4])
    made.close(timeout=10)
    assert send.calls == [[0], [1], [2, 3, 4]]


@pytest.mark.parametrize("size", [1, 3, MAX_IDS - 1, MAX_IDS, 2 * MAX_IDS + 7])
def test_no_call_has_more_than_its_most_ids_and_none_is_lost(
    made: Dispatcher, send: Sender, size: int
) -> None:
    block(made, send)
    wanted = list(range(1, 4 * MAX_IDS + 2))
    for start in range(0, len(wanted), size):
        made.wake(wanted[start : start + size])
    send.open.set()
    made.close()
    assert [each for call in send.calls for each in call] == [0, *wanted]
    assert max(map(len, send.calls)) <= MAX_IDS


def test_the_waking_thread_does_not_wait_for_a_sender_that_hangs(made, send) -> None:
    block(made, send)
    started = time.monotonic()
    for each in range(1_000):
        made.wake([each])
    assert time.monotonic() - started < 5
    assert len(send.calls) == 1


def test_a_full_queue_drops_and_counts(made: Dispatcher, send: Sender) -> None:
    block(made, send)
    for each in range(MAX_WAITING):
        made.wake([each])
    assert made.dropped == 0
    made.wake([1, 2, 3])
    assert made.dropped == 3
    send.open.set()
    made.close(30)
    assert made.sent == MAX_WAITING + 1


def test_every_commit_is_counted_by_module_also_of_what_is_dropped(
    made: Dispatcher, send: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Counter[str] = Counter()
    monkeypatch.setattr(
        telemetry, "count", lambda _metric, module, by: counted.update({module: by})
    )
    block(made, send)
    for each in range(MAX_WAITING):
        made.wake([each], ["waiting"])
    made.wake([1, 2, 3], ["dropped", "other", "dropped"])
    assert counted == {"dropped": 2, "other": 1}
    send.open.set()
    made.close(30)
    assert counted["waiting"] == MAX_WAITING


def test_a_failure_is_counted_and_the_thread_goes_on(made: Dispatcher, send: Sender) -> None:
    made._breaker = CircuitBreaker("test", reset_after=0)
    send.error = ConnectionError("refused")
    block(made, send)
    made.wake([1, 2])
    send.open.set()
    assert send.entered.acquire(timeout=10)
    send.error = None
    made.wake([3])
    made.close()
    assert send.calls == [[0], [1, 2], [3]]
    assert made.sent + made.dropped == 4
    assert made.dropped >= 1
    assert made.sent >= 1


def test_after_a_failure_the_broker_is_left_alone_for_a_while(send: Sender) -> None:
    now = [0.0]
    made = Dispatcher(send, INTERVAL)
    made._breaker = CircuitBreaker("test", reset_after=1, clock=lambda: now[0])
    send.error = ConnectionError("refused")
    block(made, send)
    made.wake([1])
    send.open.set()
    made.close()
    assert (send.calls, made.sent, made.dropped) == ([[0]], 0, 2)


def test_it_tries_again_when_the_while_is_over(made: Dispatcher, send: Sender, eventually) -> None:
    now = [0.0]
    made._breaker = CircuitBreaker("test", reset_after=1, clock=lambda: now[0])
    send.error = ConnectionError("refused")
    made.wake([1])
    eventually(lambda: made.dropped == 1)
    made.wake([2])
    eventually(lambda: made.dropped == 2)
    send.error = None
    now[0] = 1.0
    made.wake([3])
    eventually(lambda: made.sent == 1)
    assert send.calls == [[1], [3]]


def test_closing_sends_what_waits_and_ends_the_thread(made: Dispatcher, send: Sender) -> None:
    for each in range(2 * MAX_IDS):
        made.wake([each])
    made.close(30)
    assert made.sent == 2 * MAX_IDS
    assert not made._thread.is_alive()


def test_closing_returns_within_its_bound_when_the_sender_hangs(made, send) -> None:
    block(made, send)
    started = time.monotonic()
    made.close(0.2)
    assert 0.2 <= time.monotonic() - started < 5
    assert made._thread.is_alive()
    assert made._thread.daemon, "it must not keep the process from ending"


def test_closing_twice_is_harmless(made: Dispatcher) -> None:
    made.close()
    made.close()
    assert not made._thread.is_alive()


def test_a_dispatcher_that_cannot_start_raises_nothing(fresh, monkeypatch, caplog) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    dispatcher.wake([1])
    assert "the relay will publish the rows" in caplog.text


def test_the_process_counts_what_it_sent_and_what_it_left(fresh, monkeypatch, eventually) -> None:
    send = Sender()
    monkeypatch.setattr(dispatcher, "PublishTaskSender", lambda: send)
    dispatcher.wake([1, 2])
    eventually(lambda: dispatcher.counts() == (2, 0))
    dispatcher.reset()
    assert dispatcher.counts() == (0, 0), "a reset begins anew"


def test_after_a_fork_the_child_sends_its_own_wake_ups(fresh, monkeypatch) -> None:
    reading, writing = os.pipe()

    def write(ids: list[int]) -> None:
        os.write(writing, f"{os.getpid() == parent}{ids}".encode())

    parent = os.getpid()
    monkeypatch.setattr(dispatcher, "PublishTaskSender", lambda: write)
    dispatcher.wake([1])
    assert os.read(reading, 100) == b"True[1]"
    if not (child := os.fork()):
        try:
            dispatcher.wake([2])
            dispatcher.reset()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"False[2]"


def test_a_pools_child_sends_its_last_wake_ups_when_celery_ends_it(fresh, monkeypatch) -> None:
    reading, writing = os.pipe()

    def write_late(ids: list[int]) -> None:
        time.sleep(0.2)
        os.write(writing, str(ids).encode())

    monkeypatch.setattr(dispatcher, "PublishTaskSender", lambda: write_late)
    if not (child := os.fork()):
        try:
            dispatcher.wake([1])
            process_destructor(os.getpid(), 0)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"[1]"


@pytest.fixture
def at_exit(tmp_path: Path) -> Callable[[str], tuple[str, float]]:
    """Run a program that wakes for [1, 2] and ends; what its sender wrote, and how long it took."""
    written = tmp_path / "sent"
    written.touch()
    program = """
import pathlib, sys, time
from cos_events import dispatcher, telemetry
def send(ids):
    {send}
    with open(sys.argv[1], "a") as file:
        file.write(str(ids))
dispatcher.PublishTaskSender = lambda: send
dispatcher.wake([1, 2])
"""

    def run(send: str) -> tuple[str, float]:
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-c", program.format(send=send), str(written)],
            check=True,
            timeout=240,
            cwd=tmp_path,
        )
        return written.read_text(), time.monotonic() - started

    return run


def test_the_last_wake_ups_are_sent_when_the_interpreter_ends(at_exit) -> None:
    assert at_exit("time.sleep(0.2)")[0] == "[1, 2]"


def test_a_sender_that_hangs_does_not_keep_the_process_from_ending(at_exit) -> None:
    written, seconds = at_exit("time.sleep(3600)")
    assert written == ""
    assert seconds < 30
