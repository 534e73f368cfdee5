"""Events of one key run one after another, in the order of recording; others in parallel."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from locks import waits_for_a_lock
from sqlalchemy import Engine, true
from sqlalchemy.orm import Session

from cos_events import Envelope, Rejected, record_event
from cos_events.broadcast import make_wire
from cos_events.dead_letters import replaying
from cos_events.declaration import subscriber
from cos_events.errors import SubscriptionError
from cos_events.feeder import Feeder
from cos_events.store import held, locks
from cos_events.store.dead_letters import Filter

if TYPE_CHECKING:
    from conftest import Bus


class Handler:
    """Notes what it has had; fails or waits for those it is told."""

    def __init__(self) -> None:
        self.had: list[tuple[str, int]] = []
        self.errors: dict[int, Exception] = {}
        self.running: set[str] = set()
        self.overlapped = False
        self.meanwhile: Callable[[str, int], None] = lambda _key, _number: None
        self.lock = threading.Lock()

    def handle(self, message: Envelope) -> None:
        key, number = str(message.data["key"]), message.data["n"]
        assert isinstance(number, int)
        with self.lock:
            self.overlapped |= key in self.running
            self.running.add(key)
        try:
            if error := self.errors.get(number):
                raise error
            self.meanwhile(key, number)
            with self.lock:
                self.had.append((key, number))
        finally:
            with self.lock:
                self.running.discard(key)

    def of(self, key: str) -> list[int]:
        return [number for each, number in self.had if each == key]


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
def name(bus: Bus, handler: Handler) -> str:
    return bus.declare(
        handler.handle, order_by="data.key", retry_backoff=False, default_retry_delay=0
    )


@pytest.fixture
def feeder(database: Engine, name: str) -> Iterator[Feeder]:
    with closing(make_wire()) as wire:
        yield Feeder(database, wire, 1_000, lost_after=60)


def test_an_event_that_overtook_an_earlier_one_of_its_key_waits_for_it(
    bus: Bus, handler: Handler, name: str
) -> None:
    first, second, third = (bus.record(key="a", n=n) for n in range(3))
    bus.run(name, third)
    bus.run(name, second)
    assert handler.had == []
    assert [bus.state(name, raw) for raw in (first, second, third)] == ["held"] * 3
    bus.run(name, first)
    while bus.run_queued(name):
        pass
    assert handler.of("a") == [0, 1, 2]


def test_other_keys_do_not_wait(bus: Bus, handler: Handler, name: str) -> None:
    bus.record(key="a", n=0)
    blocked, other = bus.record(key="a", n=1), bus.record(key="b", n=2)
    bus.run(name, blocked)
    bus.run(name, other)
    assert handler.had == [("b", 2)]


def test_an_event_without_a_key_waits_for_nobody(bus: Bus, handler: Handler, name: str) -> None:
    bus.record(key="", n=0)
    second = bus.record(key="", n=1)
    bus.run(name, second)
    assert handler.had == [("", 1)]


def test_a_failing_key_holds_up_only_itself_until_it_gets_through(
    bus: Bus, handler: Handler, name: str
) -> None:
    handler.errors[0] = ValueError("not yet")
    first, second, other = (
        bus.record(key="a", n=0),
        bus.record(key="a", n=1),
        bus.record(key="b", n=2),
    )
    bus.run(name, first)
    bus.run(name, second)
    bus.run(name, other)
    assert handler.had == [("b", 2)]
    del handler.errors[0]
    while bus.run_queued(name):
        pass
    assert handler.of("a") == [0, 1]


def test_a_dead_letter_lets_the_next_of_its_key_go(bus: Bus, handler: Handler, name: str) -> None:
    handler.errors[0] = Rejected("never")
    first, second = bus.record(key="a", n=0), bus.record(key="a", n=1)
    bus.run(name, second)
    bus.run(name, first)
    assert bus.state(name, first) == "dead"
    bus.run_queued(name)
    assert handler.of("a") == [1]


def test_what_is_on_its_way_is_not_fed_to_the_queue_as_well(
    bus: Bus, handler: Handler, name: str, feeder: Feeder
) -> None:
    first, second = bus.record(key="a", n=0), bus.record(key="b", n=1)
    bus.run(name, second)
    assert (bus.state(name, first), feeder.sweep()) == ("held", 0)
    bus.run(name, first)
    assert handler.had == [("b", 1), ("a", 0)]


def test_what_got_lost_on_its_way_is_fed_one_of_each_key_at_a_time(
    bus: Bus,
    handler: Handler,
    name: str,
    feeder: Feeder,
    environment: Callable[..., None],
    eventually: Callable[..., None],
) -> None:
    environment(COS_EVENTS_REDELIVER_AFTER="0.1")
    raws = [bus.record(key=key, n=n) for n, key in enumerate("aabb")]
    bus.run(name, raws[-1])
    assert handler.had == []
    eventually(lambda: feeder.sweep() == 2)
    while bus.run_queued(name):
        pass
    assert (handler.of("a"), handler.of("b")) == ([0, 1], [2, 3])


def test_an_event_that_commits_late_runs_when_it_arrives(
    bus: Bus, handler: Handler, name: str, database: Engine
) -> None:
    with Session(database) as slow:
        record_event(slow, "event_log", {"key": "a", "n": 0}, module=bus.module)
        slow.flush()
        early = bus.record(key="a", n=1)
        bus.run(name, early)
        assert handler.of("a") == [1], "the other is not committed"
        slow.commit()
    late = next(raw for raw in bus.envelopes() if '"n":0' in raw)
    bus.run(name, late)
    assert handler.of("a") == [1, 0]


def test_what_committed_late_runs_before_what_is_recorded_then(
    bus: Bus, handler: Handler, name: str, database: Engine
) -> None:
    with Session(database) as slow:
        record_event(slow, "event_log", {"key": "a", "n": 0}, module=bus.module)
        slow.flush()
        bus.run(name, bus.record(key="b", n=1))
        slow.commit()
    later = bus.record(key="a", n=2)
    bus.run(name, later)
    assert handler.of("a") == [], "its elder is on its way"
    late = next(raw for raw in bus.envelopes() if '"n":0' in raw)
    bus.run(name, late)
    bus.run_queued(name)
    assert handler.of("a") == [0, 2]


@pytest.mark.parametrize("how", ["commits late", "was a dead letter"])
def test_what_comes_late_does_not_run_beside_a_later_one_of_its_key(
    bus: Bus, handler: Handler, name: str, database: Engine, feeder: Feeder, how: str
) -> None:
    slow = Session(database)
    if how == "commits late":
        record_event(slow, "event_log", {"key": "a", "n": 0}, module=bus.module)
        slow.flush()
    else:
        handler.errors[0] = Rejected("not yet")
        bus.run(name, bus.record(key="a", n=0))
    later = bus.record(key="a", n=1)

    def meanwhile(key: str, number: int) -> None:
        if (key, number) != ("a", 1):
            return
        handler.errors.clear()
        slow.commit()
        if how == "was a dead letter":
            replaying.replay(Filter(name))
        bus.run(name, next(raw for raw in bus.envelopes() if '"n":0' in raw))
        feeder.sweep()
        assert bus.run_queued(name) == 0

    handler.meanwhile = meanwhile
    bus.run(name, later)
    while bus.run_queued(name) or feeder.sweep():
        pass
    assert (handler.of("a"), handler.overlapped) == ([1, 0], False)


def test_an_old_copy_of_a_delivered_event_runs_nothing(
    bus: Bus, handler: Handler, name: str
) -> None:
    raw = bus.record(key="a", n=0)
    assert [bus.run(name, raw) for _ in range(3)] == ["SUCCESS"] * 3
    assert handler.of("a") == [0]


def test_many_workers_keep_the_order_of_each_key_whatever_arrives_when(
    bus: Bus, handler: Handler, name: str, feeder: Feeder
) -> None:
    chance = random.Random(1)  # noqa: S311 - not for secrets
    raws = [bus.record(key=f"k{n % 4}", n=n) for n in range(60)]
    chance.shuffle(raws)
    with ThreadPoolExecutor(8) as workers:
        list(workers.map(lambda raw: bus.run(name, raw), raws))
    while bus.run_queued(name) or feeder.sweep():
        pass
    assert not handler.overlapped
    for number in range(4):
        assert handler.of(f"k{number}") == list(range(number, 60, 4))


@pytest.mark.parametrize(
    ("order_by", "keys"),
    [
        ("request_id", ["r", "r"]),
        ("event_type", ["event_log", "event_log"]),
        (lambda message: message.data["n"] // 10, ["0", "0"]),
        ("data.customer.id", ["7", "7"]),
        ("data.missing", [None, None]),
        (lambda message: 1 / 0, [None, None]),
    ],
    ids=["field", "type", "function", "path", "missing", "raises"],
)
def test_a_key_is_a_field_or_what_a_function_says(
    bus: Bus, database: Engine, order_by: Any, keys: list[str | None]
) -> None:
    name = bus.declare(lambda message: None, order_by=order_by)
    for number in range(2):
        with Session(database) as session, session.begin():
            data = {"n": number, "customer": {"id": 7}}
            record_event(session, "event_log", data, module=bus.module, request_id="r")
    raws = bus.envelopes()
    bus.run(name, raws[1])
    assert [bus.row(name, raw).order_key for raw in raws] == [
        key or str(Envelope.decode(raw).base_log_id) for key, raw in zip(keys, raws, strict=True)
    ]


@pytest.mark.parametrize("path", ["nothing", "", "request_id.x"])
def test_a_field_that_no_envelope_has_is_refused(path: str, unique: Callable[[str], str]) -> None:
    with pytest.raises(SubscriptionError, match="names no field of an envelope"):
        subscriber(unique("sub"), order_by=path)(lambda message: None)


def test_an_order_does_not_go_with_batches(unique: Callable[[str], str]) -> None:
    with pytest.raises(SubscriptionError, match="order_by goes with batch_size 1 only"):
        subscriber(unique("sub"), order_by="request_id", batch_size=2)(lambda messages: None)


def test_an_old_copy_does_not_bring_a_retry_that_waits_in_postgresql_forward(
    bus: Bus, handler: Handler
) -> None:
    handler.errors[0] = ValueError("not yet")
    name = bus.declare(
        handler.handle, order_by="data.key", retry_backoff=False, default_retry_delay=3600
    )
    raw = bus.record(key="a", n=0)
    bus.run(name, raw)
    due = bus.row(name, raw).next_attempt_at
    bus.run(name, raw)
    assert (bus.state(name, raw), bus.row(name, raw).next_attempt_at) == ("held", due)


def test_what_was_held_before_its_key_was_known_keeps_its_place(
    bus: Bus, handler: Handler, name: str, database: Engine
) -> None:
    first, second = bus.record(key="a", n=0), bus.record(key="a", n=1)
    with database.begin() as connection:
        held.hold(connection, [name], true())
    bus.run(name, second)
    assert handler.had == []
    bus.run(name, first)
    bus.run_queued(name)
    assert handler.of("a") == [0, 1]


def test_what_is_published_only_while_its_queue_is_full_is_not_waited_for(
    bus: Bus, handler: Handler, name: str, database: Engine, feeder: Feeder
) -> None:
    with database.begin() as connection:
        held.start_holding(connection, name)
    first, second = bus.record(key="a", n=0), bus.record(key="a", n=1)
    bus.run(name, second)
    assert (bus.state(name, first), feeder.sweep()) == ("held", 1)
    while bus.run_queued(name):
        pass
    assert handler.of("a") == [0, 1]


def test_whose_turn_it_is_one_worker_decides_at_a_time(
    bus: Bus, handler: Handler, name: str, database: Engine, eventually: Callable[..., None]
) -> None:
    raw = bus.record(key="a", n=0)
    with ThreadPoolExecutor(1) as workers:
        with database.begin() as deciding:
            locks.order(deciding, name)
            run = workers.submit(bus.run, name, raw)
            eventually(lambda: run.done() or waits_for_a_lock(database))
            assert handler.had == []
        assert run.result() == "SUCCESS"
    assert handler.of("a") == [0]
