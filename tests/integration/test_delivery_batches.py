"""Deliveries of several messages, and messages that are no delivery at all; on real servers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Ignore, Retry
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from cos_events import Envelope
from cos_events.broadcast import Copy, send_to_queue
from cos_events.broadcast.message import body_of, bytes_of
from cos_events.recording import make_envelope

if TYPE_CHECKING:
    from conftest import Bus

AT_ONCE: dict[str, Any] = {"retry_backoff": False, "default_retry_delay": 0}
"""On RabbitMQ a delayed retry outlives its deleted queue, and then blocks all delayed messages."""


@pytest.mark.parametrize("session", [False, True])
def test_of_a_batch_only_the_message_that_fails_is_tried_again(
    bus: Bus, database: Engine, session: bool
) -> None:
    calls: list[list[int]] = []

    def handle(messages: list[Envelope]) -> None:
        calls.append([message.data["n"] for message in messages])
        if 1 in calls[-1]:
            raise ValueError("one")

    def with_session(messages: list[Envelope], session: Session) -> None:
        session.execute(text("INSERT INTO effect VALUES (:n)"), [m.data for m in messages])
        handle(messages)

    with database.begin() as connection:
        connection.execute(text("CREATE TABLE effect (n int)"))
    name = bus.declare(with_session if session else handle, batch_size=3, **AT_ONCE)
    raws = [bus.record(n=n) for n in range(3)]
    assert bus.run(name, *raws) == "SUCCESS"
    assert calls == [[0, 1, 2], [0], [1], [2]]
    assert [bus.state(name, raw) for raw in raws] == ["delivered", "retrying", "delivered"]
    with database.connect() as connection:
        found = list(connection.scalars(text("SELECT n FROM effect ORDER BY n")))
    assert found == ([0, 2] if session else [])


def test_what_a_failed_batch_changed_in_its_messages_is_not_there_when_each_is_tried_singly(
    bus: Bus,
) -> None:
    seen: list[int] = []

    def handle(messages: list[Envelope]) -> None:
        for message in messages:
            message.data["n"] += 10
        if len(messages) > 1:
            raise ValueError("together they fail")
        seen.append(messages[0].data["n"])

    name = bus.declare(handle, batch_size=2)
    bus.run(name, bus.record(n=1), bus.record(n=2))
    assert seen == [11, 12]


def test_a_batch_is_one_call_without_the_events_that_were_had_already(bus: Bus) -> None:
    calls: list[list[int]] = []
    name = bus.declare(lambda messages: calls.append([m.data["n"] for m in messages]), batch_size=3)
    raws = [bus.record(n=n) for n in range(4)]
    assert bus.run(name, *raws[:2]) == "SUCCESS"
    assert bus.run(name, raws[1], raws[2], raws[3], raws[2]) == "SUCCESS"
    assert calls == [[0, 1], [2, 3]]
    assert [bus.state(name, raw) for raw in raws] == ["delivered"] * 4


def test_each_process_of_a_worker_has_a_batch(bus: Bus, eventually: Callable[..., None]) -> None:
    together = threading.Barrier(4)
    name = bus.declare(lambda messages: together.wait(timeout=10), batch_size=10, batch_timeout=30)
    raws = [bus.record(n=n) for n in range(40)]
    send_to_queue(name, [Copy(raw) for raw in raws])
    bus.app.conf.worker_prefetch_multiplier = 1
    options = {
        "pool": "threads",
        "concurrency": 4,
        "perform_ping_check": False,
        # Told to stop, an idle event loop looks after its next timer, or up to ten seconds.
        "without_heartbeat": False,
    }
    with start_worker(bus.app, queues=[name], loglevel="WARNING", **options):
        eventually(lambda: {bus.state(name, raw) for raw in raws} == {"delivered"})
    assert not together.broken


@pytest.mark.parametrize("error", [Ignore(), Retry()])
def test_what_one_message_of_a_batch_raises_loses_none_of_the_others(
    bus: Bus, error: Exception
) -> None:
    def handle(messages: list[Envelope]) -> None:
        if messages[0].data["n"] == 0:
            raise error

    name = bus.declare(handle, batch_size=3, **AT_ONCE)
    raws = [bus.record(n=n) for n in range(3)]
    bus.run(name, *raws)
    assert [bus.state(name, raw) for raw in raws] == ["retrying", "delivered", "delivered"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\xff\xfe\x00".decode("utf-8", "surrogateescape"), "not an envelope"),
        ("{", "not an envelope"),
        ('{"base_log_id": 1}', "base_log_id"),
        ("", "not an envelope"),
        ("\ud800", "not an envelope"),
    ],
    ids=["bytes", "no json", "other json", "nothing", "lone surrogate"],
)
def test_what_is_no_envelope_goes_to_the_dead_letters_with_its_bytes_and_the_reason(
    bus: Bus, raw: str, reason: str
) -> None:
    seen: list[Envelope] = []
    name, good = bus.declare(seen.extend, batch_size=3), bus.record()
    assert bus.run(name, raw, good) == "SUCCESS"
    (letter,) = bus.dead_letters(name)
    assert body_of(letter) == bytes_of(raw)
    assert reason in letter.headers["reason"]
    assert len(seen) == 1
    assert bus.state(name, good) == "delivered"


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("with_session", [False, True])
def test_an_envelope_that_was_never_recorded_here_goes_to_the_dead_letters_unhandled(
    bus: Bus, with_session: bool, batch_size: int
) -> None:
    seen: list[object] = []

    def plain(message: object) -> None:
        seen.append(message)

    def with_a_session(message: object, session: Session) -> None:
        seen.append(message)

    handler = with_a_session if with_session else plain
    name, recorded = bus.declare(handler, batch_size=batch_size), bus.record()
    stranger = make_envelope(event_type="event_log", module=bus.module, data={})
    bus.run(name, *[recorded, stranger.encode()][-batch_size:])
    assert str(stranger.base_log_id) not in str(seen)
    (letter,) = bus.dead_letters(name)
    assert body_of(letter).decode() == stranger.encode()
    assert "was never recorded" in letter.headers["reason"]
    assert bus.row(name, stranger.encode()) is None


def test_two_copies_in_one_batch_have_one_effect(bus: Bus) -> None:
    had: list[Envelope] = []

    def handler(messages: list[Envelope], session: Session) -> None:
        had.extend(messages)

    name, raw = bus.declare(handler, batch_size=5), bus.record()
    bus.run(name, raw, f" {raw}", raw)
    assert [message.encode() for message in had] == [raw]
