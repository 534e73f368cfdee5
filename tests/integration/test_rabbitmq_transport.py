"""The transport for RabbitMQ: what it does together is what was asked for, and nothing else."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from amqp import ChannelError, RecoverableConnectionError
from celery import Celery
from kombu import Connection, Consumer, Producer, Queue
from kombu.asynchronous import Hub
from kombu.transport import pyamqp

from cos_events import broker, install, rabbitmq_transport
from cos_events.app import _choose_transport
from cos_events.rabbitmq_transport import MAX_READ, NAME, TLS_NAME


class Receiver:
    """A consumer which keeps the messages that it got."""

    def __init__(self, connection: Connection, queue: str) -> None:
        self.messages: list[Any] = []
        self.connection = connection
        self.channel: Any = connection.channel()
        self._queue = queue

    def consume(self) -> None:
        """Begin, on a channel that was just opened."""
        queue = Queue(self._queue, durable=False, auto_delete=False)
        Consumer(self.channel, [queue], on_message=self.messages.append, accept=["json"]).consume()

    def receive(self, count: int) -> list[Any]:
        """Begin, and wait until it has so many; returns their bodies."""
        self.consume()
        deadline = time.monotonic() + 20
        while len(self.messages) < count:
            assert time.monotonic() < deadline, self.messages
            try:
                self.connection.drain_events(timeout=1)
            except TimeoutError:
                continue
        return [each.decode() for each in self.messages]


@pytest.fixture
def queue(rabbitmq_url: str, unique: Callable[[str], str]) -> Iterator[str]:
    name = unique("transport")
    yield name
    with Connection(rabbitmq_url) as connection, connection.channel() as channel:
        channel.queue_delete(name)


@pytest.fixture
def receiver(rabbitmq_url: str, queue: str) -> Iterator[Callable[[], Receiver]]:
    """Start a receiver; each has a connection of its own."""
    connections: list[Connection] = []

    def start() -> Receiver:
        connections.append(Connection(rabbitmq_url, transport=NAME))
        return Receiver(connections[-1], queue)

    yield start
    for each in connections:
        each.release()


@pytest.fixture
def send(rabbitmq_url: str, queue: str) -> Callable[[int], None]:
    """Put 0, 1, 2, … into the queue."""

    def publish(count: int) -> None:
        with Connection(rabbitmq_url) as connection, connection.channel() as channel:
            Queue(queue, durable=False, auto_delete=False, channel=channel).declare()
            for number in range(count):
                Producer(channel).publish(number, routing_key=queue)

    return publish


@pytest.fixture
def holding(
    receiver: Callable[[], Receiver], send: Callable[[int], None]
) -> Callable[[int], Receiver]:
    """A receiver that has so many messages in hand."""

    def start(count: int) -> Receiver:
        send(count)
        worker = receiver()
        worker.receive(count)
        return worker

    return start


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """The acknowledgements that go over the wire: each a delivery tag, and whether all up to it."""
    sent: list[tuple[int, bool]] = []
    original: Any = pyamqp.Channel.basic_ack

    def spy(self: Any, delivery_tag: int, multiple: bool = False) -> Any:
        sent.append((delivery_tag, multiple))
        return original(self, delivery_tag, multiple)

    monkeypatch.setattr(pyamqp.Channel, "basic_ack", spy)
    return sent


def test_what_is_acknowledged_together_goes_in_one_frame(
    holding: Callable[[int], Receiver], frames: list[tuple[int, bool]]
) -> None:
    worker = holding(10)
    with worker.channel.together():
        for message in worker.messages:
            message.ack()
        assert frames == []
    assert frames == [(10, True)]


def test_what_is_in_hand_is_not_acknowledged_with_what_came_after_it(
    receiver: Callable[[], Receiver],
    holding: Callable[[int], Receiver],
    frames: list[tuple[int, bool]],
) -> None:
    worker = holding(6)
    first, second, third, fourth, fifth, _ = worker.messages
    with worker.channel.together():
        third.ack()
        fourth.ack()
    assert frames == [(3, False), (4, False)]
    first.reject()
    with worker.channel.together():
        fifth.ack()
        second.ack()
    assert frames[2:] == [(5, True)]
    worker.channel.close()
    assert receiver().receive(1) == [5]


@pytest.mark.parametrize("seed", range(5))
def test_exactly_what_was_not_acknowledged_comes_again(
    seed: int, receiver: Callable[[], Receiver], holding: Callable[[int], Receiver]
) -> None:
    chance = random.Random(seed)  # noqa: S311 - an order, not a secret
    worker = holding(100)
    waiting = list(range(100))
    while len(waiting) > 20:
        # A task's messages are neighbours, mostly; tasks end in any order.
        begin = chance.randrange(min(30, len(waiting)))
        task = chance.sample(waiting[begin : begin + 12], min(10, len(waiting) - begin))
        waiting = [number for number in waiting if number not in task]
        if chance.random() < 0.2:
            for number in task:
                worker.messages[number].reject()
            continue
        with worker.channel.together():
            for number in task:
                worker.messages[number].ack()
    worker.channel.close()
    again = receiver()
    assert again.receive(len(waiting)) == waiting


def test_all_up_to_a_delivery_may_be_acknowledged_as_with_kombus_own(
    holding: Callable[[int], Receiver], frames: list[tuple[int, bool]]
) -> None:
    worker = holding(5)
    worker.messages[2].ack(multiple=True)
    with worker.channel.together():
        worker.messages[3].ack()
        worker.messages[4].ack()
    assert frames == [(3, True), (5, True)]


def test_deliveries_begin_anew_on_a_channel_that_was_opened_again(
    holding: Callable[[int], Receiver], frames: list[tuple[int, bool]]
) -> None:
    worker = holding(3)
    with worker.channel.together():
        worker.messages[0].ack()
        worker.messages[1].ack()
    with pytest.raises(ChannelError):
        worker.channel.queue_declare("cos.events.no.such.queue", passive=True)
    worker.messages.clear()
    assert worker.receive(1) == [2]
    with worker.channel.together():
        worker.messages[0].ack()
    assert frames == [(2, True), (1, True)]


def test_a_workers_loop_receives_all_in_order(
    receiver: Callable[[], Receiver], send: Callable[[int], None]
) -> None:
    send(5 * MAX_READ)
    worker, hub = receiver(), Hub()
    worker.consume()
    worker.connection.register_with_event_loop(hub)
    deadline = time.monotonic() + 20
    while len(worker.messages) < 5 * MAX_READ and time.monotonic() < deadline:
        next(hub.loop)
    assert [each.decode() for each in worker.messages] == list(range(5 * MAX_READ))
    hub.close()


def test_a_turn_of_the_loop_reads_what_has_arrived_but_not_for_ever() -> None:
    transport = rabbitmq_transport.Transport(SimpleNamespace())
    arrived, soon = iter(range(MAX_READ + 5)), []

    def drain_events(timeout: float) -> None:
        assert timeout == 0
        if next(arrived, None) is None:
            raise TimeoutError

    connection = SimpleNamespace(connected=True, drain_events=drain_events)
    loop = SimpleNamespace(call_soon=lambda *call: soon.append(call))
    transport.on_readable(connection, loop)
    assert next(arrived) == MAX_READ
    ((again, *args),) = soon
    again(*args)
    assert next(arrived, None) is None
    assert len(soon) == 1


def test_a_lost_connection_is_told_to_the_worker() -> None:
    transport = rabbitmq_transport.Transport(SimpleNamespace())
    with pytest.raises(RecoverableConnectionError):
        transport.on_readable(SimpleNamespace(connected=False), SimpleNamespace())

    def fail(timeout: float) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        transport.on_readable(SimpleNamespace(connected=True, drain_events=fail), None)


def test_a_tls_server_is_spoken_to_by_tls() -> None:
    connection = Connection("amqps://127.0.0.1:1//", transport=TLS_NAME)
    assert isinstance(connection.transport, rabbitmq_transport.Transport)
    assert connection.ssl is True
    options = {"ca_certs": "ca.pem"}
    chosen = Connection("amqps://127.0.0.1:1//", transport=TLS_NAME, ssl=options)
    assert chosen.transport.client.ssl == options


@pytest.mark.parametrize(
    ("scheme", "transport"),
    [("amqp", NAME), ("pyamqp", NAME), ("amqps", TLS_NAME), ("sqs", None)],
)
def test_workers_and_the_bus_use_it_unless_the_application_says_otherwise(
    environment: Callable[..., None], scheme: str, transport: str | None
) -> None:
    app = install(Celery("other", broker=f"{scheme}://127.0.0.1//", set_as_current=False))
    _choose_transport(SimpleNamespace(app=app))
    assert app.conf.broker_transport == transport
    own = install(Celery("own", broker="amqp://127.0.0.1//", set_as_current=False))
    own.conf.broker_transport = "amqp"
    _choose_transport(SimpleNamespace(app=own))
    assert own.connection_for_read().transport_cls == "amqp"
    assert broker.connect().transport_cls == "amqp"
