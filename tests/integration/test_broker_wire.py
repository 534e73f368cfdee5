"""One conformance suite for `BrokerWire`: what `broadcast/contract.py` promises, on each broker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

import amqp
import pytest
from kombu import Queue
from queues import drain, queued, text

from cos_events import broker
from cos_events.broadcast import BrokerWire, Copy
from cos_events.broadcast.rabbitmq import RabbitMQWire
from cos_events.broadcast.redis import RedisWire
from cos_events.errors import BroadcastError
from cos_events.recording import make_envelope
from cos_events.settings import get_settings
from cos_events.store.outbox import Pending
from cos_events.subscription import Recipient
from cos_events.topology import channel_name, fanout_exchange


@dataclass(frozen=True)
class Features:
    """What a broker does in its own way.

    Attributes:
        make: its wire.
        filters_types: a queue gets only the event types that its subscription wants; otherwise all
            of a module, and the subscriber's task skips the others.
        remakes_queues: a queue that is deleted behind a connected wire's back exists again at once.
    """

    make: Callable[[], BrokerWire]
    filters_types: bool
    remakes_queues: bool


REDIS = Features(RedisWire, filters_types=True, remakes_queues=True)
RABBITMQ = Features(RabbitMQWire, filters_types=False, remakes_queues=False)


def features_of(url: str) -> Features:
    return REDIS if url.startswith("redis") else RABBITMQ


@pytest.fixture
def module(broker_url: str, unique: Callable[[str], str]) -> Iterator[str]:
    """A source module of the test's own; its exchange is deleted afterwards."""
    name = unique("wire")
    yield name
    delete_exchange(name)


@pytest.fixture
def wire(broker_url: str) -> Iterator[BrokerWire]:
    made = features_of(broker_url).make()
    yield made
    made.close()


@pytest.fixture
def subscription(
    module: str, unique: Callable[[str], str], clean_queues: list[str]
) -> Callable[..., Recipient]:
    """Makes a subscription to the test's module; its queue is deleted afterwards."""

    def make(
        modules: frozenset[str] | None = frozenset({module}), types: frozenset[str] | None = None
    ) -> Recipient:
        name = unique("sub")
        clean_queues.append(name)
        return Recipient(name, modules, types)

    return make


def events(module: str, count: int, event_type: str = "event_log") -> list[Pending]:
    return [
        Pending(
            number,
            module,
            event_type,
            make_envelope(event_type=event_type, module=module, data={"n": number}).encode(),
        )
        for number in range(count)
    ]


def texts(batch: list[Pending]) -> list[str]:
    return [pending.envelope for pending in batch]


def delete_exchange(module: str) -> None:
    with broker.connect() as connection, connection.channel() as channel:
        channel.exchange_delete(channel_name(module))


def test_each_wanting_queue_gets_each_envelope_once_and_in_order(
    wire: BrokerWire, module: str, subscription: Callable[..., Recipient]
) -> None:
    wanting = [subscription(), subscription(), subscription(modules=None)]
    batch = events(module, 50)
    wire.send(batch[:30], wanting)
    wire.send(batch[30:], wanting)
    assert [queued(each.name) for each in wanting] == [texts(batch)] * 3


def test_the_message_is_exactly_the_envelopes_json(
    wire: BrokerWire, module: str, subscription: Callable[..., Recipient]
) -> None:
    wanting = subscription()
    raw = make_envelope(
        event_type="event_log", module=module, data={"text": "ünïcode \N{PARTY POPPER} \x7f"}
    ).encode()
    wire.send([Pending(1, module, "event_log", raw)], [wanting])
    (message,) = drain(wanting.name)
    assert text(message) == raw
    assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")
    assert message.payload == json.loads(raw)


def test_a_queue_gets_nothing_of_a_module_that_it_does_not_want(
    wire: BrokerWire, module: str, subscription: Callable[..., Recipient]
) -> None:
    wanting, other = subscription(), subscription(modules=frozenset({"another_module"}))
    wire.send(events(module, 3), [wanting, other])
    assert len(queued(wanting.name)) == 3
    assert broker.queue_depths([other.name]) in ({}, {other.name: 0})


def test_a_queue_gets_nothing_of_a_module_that_it_wants_no_more(
    wire: BrokerWire, module: str, subscription: Callable[..., Recipient]
) -> None:
    wide = subscription()
    narrow = replace(wide, modules=frozenset({"another_module"}))
    counts = []
    for recipient in (wide, narrow, wide, narrow):
        wire.send(events(module, 3), [recipient])
        counts.append(len(queued(wide.name)))
    assert counts == [3, 0, 3, 0]


def test_unwanted_event_types_are_filtered_here_or_left_to_the_subscribers_task(
    wire: BrokerWire, broker_url: str, module: str, subscription: Callable[..., Recipient]
) -> None:
    picky = subscription(types=frozenset({"prompt_trace"}))
    wanted, unwanted = events(module, 2, "prompt_trace"), events(module, 2, "event_log")
    wire.send([*unwanted, *wanted], [picky])
    expected = wanted if features_of(broker_url).filters_types else [*unwanted, *wanted]
    assert queued(picky.name) == texts(expected)


def test_a_batch_may_hold_events_of_several_modules(
    wire: BrokerWire,
    module: str,
    unique: Callable[[str], str],
    subscription: Callable[..., Recipient],
) -> None:
    second = unique("wire")
    first_only, both = subscription(), subscription(modules=frozenset({module, second}))
    here, there = events(module, 2), events(second, 2)
    try:
        wire.send([here[0], there[0], here[1], there[1]], [first_only, both])
        assert queued(first_only.name) == texts(here)
        assert queued(both.name) == texts([here[0], there[0], here[1], there[1]])
    finally:
        delete_exchange(second)


def test_a_queue_without_a_consumer_keeps_its_messages_after_the_wire_is_closed(
    wire: BrokerWire, module: str, subscription: Callable[..., Recipient]
) -> None:
    absent = subscription()
    first, second = events(module, 2)
    wire.send([first], [absent])
    wire.close()
    wire.send([second], [absent])
    wire.close()
    assert queued(absent.name) == texts([first, second])


def test_a_subscription_that_appears_between_two_sends_gets_the_second(
    wire: BrokerWire, module: str, subscription: Callable[..., Recipient]
) -> None:
    old, new = subscription(), subscription()
    first, second = events(module, 2)
    wire.send([first], [old])
    wire.send([second], [old, new])
    assert queued(old.name) == texts([first, second])
    assert queued(new.name) == texts([second])


def test_an_event_that_nobody_wants_is_taken_all_the_same(wire: BrokerWire, module: str) -> None:
    wire.send(events(module, 3), [])


def test_the_exchange_can_be_heard_live_by_a_plain_kombu_consumer(
    wire: BrokerWire, module: str, eventually: Callable[..., None]
) -> None:
    batch, heard = events(module, 20), []
    queue = Queue("", fanout_exchange(module), exclusive=True, auto_delete=True)
    with broker.connect() as connection:

        def listen() -> bool:
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.2)
            return len(heard) >= len(batch)

        with connection.Consumer(queue, on_message=lambda m: heard.append(text(m)), no_ack=True):
            listen()  # on Redis a consumer subscribes when it first listens
            wire.send(batch, [])
            eventually(listen)
    assert heard == texts(batch)


def test_a_deleted_queue_is_made_again_at_the_latest_when_the_wire_connects_again(
    wire: BrokerWire, broker_url: str, module: str, subscription: Callable[..., Recipient]
) -> None:
    lost, other = subscription(), subscription()
    batch = first, second, third = events(module, 3)
    wire.send([first], [lost, other])
    broker.delete_queues([lost.name])
    assert not broker.queue_depths([lost.name]).get(lost.name), "it was not deleted"
    wire.send([second], [lost, other])
    wire.close()
    wire.send([third], [lost, other])
    assert queued(other.name) == texts(batch)
    # What a fanout exchange drops meanwhile without a word, the relay sends again.
    remade = features_of(broker_url).remakes_queues
    assert queued(lost.name) == texts([second, third] if remade else [third])


def test_a_deleted_exchange_is_made_again_by_the_second_send_at_the_latest(
    wire: BrokerWire, module: str, subscription: Callable[..., Recipient]
) -> None:
    wanting = subscription()
    first, second = events(module, 2)
    wire.send([first], [wanting])
    delete_exchange(module)
    try:
        wire.send([second], [wanting])
    except BroadcastError:
        wire.send([second], [wanting])
    assert queued(wanting.name) == texts([first, second])


def test_an_exchange_that_somebody_made_otherwise_stops_no_other_module(
    rabbitmq_url: str,
    environment: Callable[..., None],
    unique: Callable[[str], str],
    clean_queues: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    environment(broker_url=rabbitmq_url)
    spoilt, healthy, name = unique("wire"), unique("wire"), unique("sub")
    clean_queues.append(name)
    with broker.connect() as connection, connection.channel() as channel:
        channel.exchange_declare(channel_name(spoilt), "direct", durable=True, auto_delete=False)
    good = events(healthy, 1)
    with closing(RabbitMQWire()) as wire:
        for _ in range(2):
            wire.send(events(spoilt, 1) + good, [Recipient(name, None)])
    assert queued(name) == 2 * texts(good)
    (said,) = [each.message for each in caplog.records if "cannot be used" in each.message]
    assert said.startswith(f"exchange {channel_name(spoilt)} cannot be used: ")
    for each in (spoilt, healthy):
        delete_exchange(each)


def test_of_a_batch_only_the_confirms_are_waited_for(
    rabbitmq_url: str,
    environment: Callable[..., None],
    unique: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment(broker_url=rabbitmq_url)
    name = unique("sub")
    with closing(RabbitMQWire()) as wire:
        wire.send_to_queue(name, [Copy("{}")])
        looks: list[float | None] = []
        original: Any = amqp.Connection.drain_events

        def spy(self: Any, timeout: float | None = None) -> Any:
            looks.append(timeout)
            return original(self, timeout)

        monkeypatch.setattr(amqp.Connection, "drain_events", spy)
        wire.send_to_queue(name, 5 * [Copy("{}")])
    broker.delete_queues([name])
    assert get_settings().wire_timeout in looks
    assert 0 not in looks
