"""What is counted on the way of an event, each where it happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import Engine, update

from cos_events import Envelope, Rejected
from cos_events.broadcast import make_broadcaster
from cos_events.broadcast.channel import ChannelWire
from cos_events.circuit_breaker import CircuitBreaker, CircuitOpen
from cos_events.dispatcher import Dispatcher
from cos_events.publisher import Publisher
from cos_events.store.models import SubscriptionRow
from cos_events.store.outbox import Pending

if TYPE_CHECKING:
    from conftest import Bus


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"cos_events_{name}", labels) or 0.0


@pytest.fixture
def publish(database: Engine):
    broadcaster = make_broadcaster()
    yield Publisher(database, broadcaster).publish
    broadcaster.close()


def test_what_commits_and_goes_out_is_counted_by_module(
    bus: Bus, publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = Dispatcher(lambda _ids: None, 0)
    monkeypatch.setattr("cos_events.capture.wake", dispatcher.wake)
    bus.declare(lambda message: None)
    bus.record()
    bus.record()
    dispatcher.close()
    assert counted("committed_total", module=bus.module) == 2
    assert counted("published_total", module=bus.module) == 0
    publish()
    publish()
    assert counted("published_total", module=bus.module) == 2
    assert counted("publish_latency_seconds_count", module=bus.module) == 2
    assert 0 < counted("publish_latency_seconds_sum", module=bus.module) < 60


@pytest.mark.parametrize("in_a_transaction", [False, True])
def test_a_delivery_counts_once_with_the_time_since_its_recording(
    bus: Bus, in_a_transaction: bool
) -> None:
    def plain(message: Envelope) -> None:
        pass

    def within(message: Envelope, session: object) -> None:
        pass

    name, raw = bus.declare(within if in_a_transaction else plain), bus.record()
    bus.run(name, raw)
    bus.run(name, raw)
    its = {"module": bus.module, "subscription": name}
    assert counted("delivered_total", **its) == 1
    assert counted("delivery_latency_seconds_count", **its) == 1
    assert 0 < counted("delivery_latency_seconds_sum", **its) < 60


def test_failures_are_counted_by_what_follows(bus: Bus) -> None:
    failures: list[Exception] = [ValueError("first"), Rejected("second")]

    def handle(message: Envelope) -> None:
        raise failures.pop(0)

    name = bus.declare(handle, retry_backoff=False, default_retry_delay=0)
    raw = bus.record()
    its = {"module": bus.module, "subscription": name}
    bus.run(name, raw)
    assert (counted("retried_total", **its), counted("dead_total", **its)) == (1, 0)
    bus.run(name, raw, retries=1)
    assert (counted("retried_total", **its), counted("dead_total", **its)) == (1, 1)
    bus.run(name, "rubbish")
    assert counted("unusable_total", subscription=name) == 1
    assert counted("delivered_total", **its) == 0


def test_what_waits_in_postgresql_is_counted(bus: Bus, database: Engine, publish) -> None:
    name = bus.declare(lambda message: None, event_types=["event_log"])
    full = SubscriptionRow.name == name
    with database.begin() as connection:
        connection.execute(update(SubscriptionRow).where(full).values(holding=True))
    bus.record()
    bus.record("other")
    publish()
    assert counted("held_total", module=bus.module, subscription=name) == 1


def test_a_paused_subscribers_events_are_counted_as_held(bus: Bus) -> None:
    def handle(message: Envelope) -> None:
        raise ConnectionError

    name = bus.declare(handle, pause_on=(ConnectionError,))
    bus.run(name, bus.record())
    bus.run(name, bus.record())
    its = {"module": bus.module, "subscription": name}
    assert counted("held_total", **its) == 2
    assert counted("retried_total", **its) == 0


def test_what_the_channel_misses_is_counted(environment: Callable[..., None]) -> None:
    before = counted("channel_missed_total")
    environment(REDIS_URL="redis://127.0.0.1:1/0")
    wire = ChannelWire()
    wire.send([Pending(1, "cc", "event_log", "{}")] * 3)
    wire.close()
    assert counted("channel_missed_total") == before + 3


def test_a_breaker_shows_its_state_and_counts_its_outages() -> None:
    now = [0.0]
    breaker = CircuitBreaker("a test's server", reset_after=1.0, clock=lambda: now[0])
    its = {"breaker": "a test's server"}
    assert counted("breaker_open", **its) == 0
    with pytest.raises(ZeroDivisionError), breaker:
        raise ZeroDivisionError
    with pytest.raises(CircuitOpen), breaker:
        pass
    assert (counted("breaker_open", **its), counted("breaker_opened_total", **its)) == (1, 1)
    now[0] = 1.0
    with breaker:
        pass
    assert (counted("breaker_open", **its), counted("breaker_opened_total", **its)) == (0, 1)
