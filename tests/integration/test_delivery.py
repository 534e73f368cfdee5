"""One delivery that goes well, or has been made already: `cos_events.delivery` on real servers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from cos_events import BaseSubscriber, Envelope, record_event

if TYPE_CHECKING:
    from conftest import Bus

AT_ONCE: dict[str, Any] = {"retry_backoff": False, "default_retry_delay": 0}
"""On RabbitMQ a delayed retry outlives its deleted queue, and then blocks all delayed messages."""


@pytest.fixture
def effects(database: Engine) -> Callable[[], list[int]]:
    """What handlers wrote by `write`, as the database has it."""
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE effect (n int)"))

    def committed() -> list[int]:
        with database.connect() as connection:
            return list(connection.scalars(text("SELECT n FROM effect ORDER BY n")))

    return committed


def write(session: Session, message: Envelope) -> None:
    session.execute(text("INSERT INTO effect VALUES (:n)"), {"n": message.data["n"]})


def test_a_success_writes_that_the_event_is_delivered(bus: Bus) -> None:
    seen: list[Envelope] = []
    name, raw = bus.declare(seen.append), bus.record(n=1)
    assert bus.run(name, raw) == "SUCCESS"
    row = bus.row(name, raw)
    assert (row.state, row.attempts, row.error, row.next_attempt_at) == ("delivered", 1, None, None)
    assert [message.encode() for message in seen] == [raw]


def test_a_second_copy_of_an_event_is_skipped(bus: Bus) -> None:
    seen: list[Envelope] = []
    name, raw = bus.declare(seen.append), bus.record(n=1)
    assert [bus.run(name, raw), bus.run(name, raw), bus.run(name, raw, retries=2)] == [
        "SUCCESS"
    ] * 3
    assert len(seen) == 1
    assert bus.row(name, raw).attempts == 1


def test_two_subscriptions_each_have_an_event_once(bus: Bus) -> None:
    seen: list[str] = []
    first = bus.declare(lambda message: seen.append("first"))
    second = bus.declare(lambda message: seen.append("second"))
    raw = bus.record()
    for name in (first, second, first, second):
        bus.run(name, raw)
    assert seen == ["first", "second"]


def test_the_handlers_work_and_the_delivery_row_commit_together(
    bus: Bus, effects: Callable[[], list[int]]
) -> None:
    seen_within: list[object] = []

    def handler(message: Envelope, session: Session) -> None:
        write(session, message)
        seen_within.append((effects(), bus.row(name, raw)))

    name, raw = bus.declare(handler), bus.record(n=7)
    assert [bus.run(name, raw), bus.run(name, raw)] == ["SUCCESS"] * 2
    assert seen_within == [([], None)], "nothing is to be seen before both commit"
    assert effects() == [7]
    assert bus.state(name, raw) == "delivered"


@pytest.mark.parametrize("failure", [ValueError("no"), False])
def test_a_failure_rolls_the_handlers_work_back_and_it_is_not_delivered(
    bus: Bus, effects: Callable[[], list[int]], failure: Exception | bool
) -> None:
    def handler(message: Envelope, session: Session) -> bool:
        write(session, message)
        if isinstance(failure, Exception):
            raise failure
        return failure

    name, raw = bus.declare(handler, **AT_ONCE), bus.record(n=7)
    assert bus.run(name, raw) == "RETRY"
    assert effects() == []
    assert bus.state(name, raw) == "retrying"


def test_a_retry_that_succeeds_is_delivered_with_its_attempts(
    bus: Bus, effects: Callable[[], list[int]]
) -> None:
    failures = [ValueError("first")]

    def handler(message: Envelope, session: Session) -> None:
        write(session, message)
        if failures:
            raise failures.pop()

    name, raw = bus.declare(handler, **AT_ONCE), bus.record(n=7)
    assert [bus.run(name, raw), bus.run(name, raw, retries=1)] == ["RETRY", "SUCCESS"]
    row = bus.row(name, raw)
    assert (row.state, row.attempts, row.error, row.next_attempt_at) == ("delivered", 2, None, None)
    assert effects() == [7]


def test_two_copies_at_once_have_one_effect(
    bus: Bus,
    database: Engine,
    effects: Callable[[], list[int]],
    eventually: Callable[..., None],
) -> None:
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")

    def second_waits() -> object:
        with database.connect() as connection:
            return connection.scalar(waiting)

    def handler(message: Envelope, session: Session) -> None:
        write(session, message)
        eventually(second_waits)

    name, raw = bus.declare(handler), bus.record(n=7)
    with ThreadPoolExecutor() as pool:
        states = list(pool.map(lambda _: bus.run(name, raw), range(2)))
    assert states == ["SUCCESS", "SUCCESS"]
    assert effects() == [7]


def test_when_the_first_of_two_copies_fails_the_second_has_the_effect(
    bus: Bus,
    database: Engine,
    effects: Callable[[], list[int]],
    eventually: Callable[..., None],
) -> None:
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    first = threading.Lock()

    def second_waits() -> object:
        with database.connect() as connection:
            return connection.scalar(waiting)

    def handler(message: Envelope, session: Session) -> None:
        write(session, message)
        if first.acquire(blocking=False):
            eventually(second_waits)
            raise ValueError("the first")

    name, raw = bus.declare(handler, **AT_ONCE), bus.record(n=7)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: bus.run(name, raw), range(2)))
    if not effects():
        # The failure was noted before the second went on: it left the event to the retry.
        eventually(lambda: bus.run_queued(name))
    assert effects() == [7]
    assert bus.state(name, raw) == "delivered"


def test_handlers_may_be_coroutines_and_share_one_event_loop(
    bus: Bus, effects: Callable[[], list[int]]
) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def handler(message: Envelope, session: Session) -> None:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        write(session, message)

    name, raws = bus.declare(handler), [bus.record(n=n) for n in range(2)]
    assert [bus.run(name, raw) for raw in raws] == ["SUCCESS"] * 2
    assert effects() == [0, 1]
    assert loops[0] is loops[1]


def test_a_class_handles_messages_with_one_instance(bus: Bus) -> None:
    seen: list[tuple[int, Any]] = []

    class Handler(BaseSubscriber):
        def process_message(self, message: Envelope) -> bool:
            seen.append((id(self), message.data["n"]))
            return True

    name = bus.declare(Handler)
    for n in range(2):
        assert bus.run(name, bus.record(n=n)) == "SUCCESS"
    assert [n for _, n in seen] == [0, 1]
    assert len({instance for instance, _ in seen}) == 1
    assert Handler.subscriber.name == name


def test_events_of_other_types_are_skipped_without_a_row(bus: Bus) -> None:
    seen: list[Envelope] = []
    name = bus.declare(seen.append, event_types=["prompt_trace"])
    unwanted, wanted = bus.record("event_log"), bus.record("prompt_trace")
    assert [bus.run(name, unwanted), bus.run(name, wanted)] == ["SUCCESS"] * 2
    assert [message.event_type for message in seen] == ["prompt_trace"]
    assert bus.row(name, unwanted) is None
    assert bus.dead_letters(name) == []
    assert bus.queued(name) == []


@pytest.mark.parametrize("kind", ["a function", "a coroutine"])
def test_what_a_handler_records_belongs_to_the_request_and_the_trace_of_its_event(
    bus: Any, database: Engine, kind: str
) -> None:
    def handle(message: Envelope, session: Session) -> None:
        record_event(session, "followed", {}, module=bus.module)
        record_event(session, "followed", {}, module=bus.module, request_id="own", trace_id="own")

    async def handle_later(message: Envelope, session: Session) -> None:
        handle(message, session)

    name = bus.declare(handle if kind == "a function" else handle_later, event_types="begun")
    with Session(database) as session:
        ids = {"request_id": "req-7", "trace_id": "order-7"}
        record_event(session, "begun", {}, module=bus.module, **ids)
        session.commit()
    bus.run(name, *bus.envelopes())
    found = [Envelope.decode(raw) for raw in bus.envelopes()]
    assert [(each.request_id, each.trace_id) for each in found] == [
        ("req-7", "order-7"),
        ("req-7", "order-7"),
        ("own", "own"),
    ]
    assert Envelope.decode(bus.record()).request_id == ""
