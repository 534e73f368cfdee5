"""`publish_once` and the relay, which finds what no wake-up was sent for, on real servers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from outbox import record, unpublished
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from cos_events import broker, publisher
from cos_events.broadcast import Broadcaster, make_broadcaster
from cos_events.circuit_breaker import CircuitBreaker
from cos_events.errors import BroadcastError
from cos_events.process import PerProcess, PerThread
from cos_events.publisher import Publisher, publish_once
from cos_events.relay import Relay
from cos_events.store import subscriptions
from cos_events.subscription import Subscription
from cos_events.topology import channel_name

NOBODY_LISTENS = "redis://127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`publish_once` starts as in a new process, and nothing else publishes."""
    made: list[Broadcaster] = []

    def make() -> Publisher:
        made.append(make_broadcaster())
        return Publisher(publisher.get_relaxed_engine(), made[-1])

    breaker = PerProcess(lambda: CircuitBreaker("publishing", reset_after=0.2))
    monkeypatch.setattr(publisher, "_publisher", PerThread(make))
    monkeypatch.setattr(publisher, "_breaker", breaker)
    monkeypatch.setattr("cos_events.capture.wake", lambda *_: None)
    yield
    for each in made:
        each.close()


@pytest.fixture
def relay() -> Iterator[Relay]:
    made = Relay(interval=0.02)
    yield made
    made.stop()


@pytest.fixture
def module(broker_url: str, unique: Callable[[str], str]) -> Iterator[str]:
    """A source module of the test's own; its exchange is deleted afterwards."""
    name = unique("mod")
    yield name
    with broker.connect() as connection, connection.channel() as channel:
        channel.exchange_delete(channel_name(name))


@pytest.fixture
def subscribe(database: Engine, unique: Callable[[str], str], clean_queues: list[str]):
    """Registers a subscription to a module, whose queue is deleted afterwards; returns its name."""

    def register(module: str) -> str:
        name = unique("sub")
        clean_queues.append(name)
        with database.begin() as connection:
            subscriptions.register(connection, [Subscription(name, frozenset({module}))])
        return name

    return register


def test_the_relay_publishes_rows_that_nobody_was_woken_for(
    database: Engine,
    module: str,
    subscribe: Callable[[str], str],
    relay: Relay,
    eventually: Callable[..., None],
) -> None:
    name = subscribe(module)
    record(database, 3, module)
    relay.start()
    eventually(lambda: unpublished(database) == 0)
    record(database, 2, module)
    eventually(lambda: unpublished(database) == 0)
    assert broker.queue_depths([name]) == {name: 5}


def test_a_relay_that_has_stopped_publishes_nothing(
    database: Engine, module: str, relay: Relay, eventually: Callable[..., None]
) -> None:
    record(database, 1, module)
    relay.start()
    eventually(lambda: unpublished(database) == 0)
    relay.stop()
    assert not relay._thread.is_alive()
    record(database, 1, module)
    assert unpublished(database) == 1


def test_a_relay_that_is_told_to_stop_ends_between_two_full_batches(
    monkeypatch: pytest.MonkeyPatch, relay: Relay
) -> None:
    swept = threading.Event()

    def full_batch() -> int:
        swept.set()
        return publisher.BATCH_SIZE

    monkeypatch.setattr("cos_events.relay.publish_once", full_batch)
    relay.start()
    assert swept.wait(10)
    relay.stop()
    assert not relay._thread.is_alive()


def test_the_relay_sweeps_on_at_once_after_a_full_batch(
    database: Engine,
    module: str,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
) -> None:
    monkeypatch.setattr("cos_events.relay.BATCH_SIZE", 2)
    monkeypatch.setattr(Publisher.publish, "__defaults__", (None, 2))
    record(database, 7, module)
    slow = Relay(interval=2.0)
    started = time.monotonic()
    slow.start()
    try:
        eventually(lambda: unpublished(database) == 0)
        assert time.monotonic() - started < 4.0, "it waited between batches"
    finally:
        slow.stop()


def test_the_relay_goes_on_after_an_error(
    monkeypatch: pytest.MonkeyPatch, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    swept = threading.Semaphore(0)

    def broken() -> int:
        swept.release()
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr("cos_events.relay.publish_once", broken)
    relay.start()
    assert all(swept.acquire(timeout=10) for _ in range(3))
    assert "nobody thought of this" in caplog.text


@pytest.mark.parametrize(
    ("sweep", "error"),
    [
        ("retention.Retention", SQLAlchemyError("a foreign key on the outbox")),
        ("feeder.Feeder", BroadcastError("a queue that somebody made otherwise")),
    ],
    ids=["retention", "feeding"],
)
def test_a_sweep_that_always_fails_keeps_no_lost_event_waiting(
    sweep: str,
    error: Exception,
    database: Engine,
    make_bus: Callable[[Engine], Any],
    relay: Relay,
    environment: Callable[..., None],
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_self: object) -> int:
        raise error

    monkeypatch.setattr(f"cos_events.{sweep}.sweep", fail)
    environment(COS_EVENTS_REDELIVER_AFTER="0.5")
    bus = make_bus(database)
    name = bus.declare(lambda message: None)
    bus.record()
    publish_once()
    assert len(bus.queued(name)) == 1
    relay.start()
    eventually(lambda: broker.queue_depths([name]).get(name))


def test_the_relay_publishes_once_the_broker_is_back(
    database: Engine,
    module: str,
    environment: Callable[..., None],
    relay: Relay,
    eventually: Callable[..., None],
) -> None:
    url = os.environ["BROKER_URL"]
    environment(BROKER_URL=f"{url.partition('://')[0]}://127.0.0.1:1/0")
    record(database, 2, module)
    relay.start()
    eventually(lambda: publisher._breaker.get().opened == 1)
    assert unpublished(database) == 2
    environment(BROKER_URL=url)
    eventually(lambda: unpublished(database) == 0)


def test_while_the_broker_is_down_it_is_asked_once_and_then_left_alone(
    database: Engine, environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Down(Publisher):
        def publish(self, ids: Sequence[int] | None = None, limit: int = 500) -> int:
            asked.append(1)
            return super().publish(ids, limit)

    environment(BROKER_URL=NOBODY_LISTENS)
    down = Down(database, make_broadcaster())
    monkeypatch.setattr(publisher, "_publisher", PerThread(lambda: down))
    patient = CircuitBreaker("publishing", reset_after=3600.0)
    monkeypatch.setattr(publisher, "_breaker", PerProcess(lambda: patient))
    ids = record(database, 2)
    assert [publish_once(), publish_once(), publish_once(ids)] == [0, 0, 0]
    assert len(asked) == 1
    assert patient.state == "open"
    assert unpublished(database) == 2


def test_while_postgresql_is_away_nothing_is_published_and_nothing_raised(
    database: Engine, environment: Callable[..., None]
) -> None:
    environment(DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert publish_once() == 0
    assert publisher._breaker.get().state == "open"


def test_a_new_module_and_a_new_subscription_need_no_change_of_code(
    database: Engine, module: str, subscribe: Callable[[str], str]
) -> None:
    record(database, 1, module)
    assert publish_once() == 1
    name = subscribe(module)
    record(database, 2, module)
    assert publish_once() == 2
    assert broker.queue_depths([name]) == {name: 2}
