"""The transport for RabbitMQ: what it does together is what was asked for, and nothing else."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from amqp import ChannelError, RecoverableConnectionError
from amqp.serialization import dumps
from amqp.transport import TCPTransport
from celery import Celery
from forking import said_by_a_child
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
        deadline = time.monotonic() + 60
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
def send(rabbitmq_url: str, queue: str) -> Callable[..., None]:
    """Put 0, 1, 2, … into the queue; each in a list with the padding if there is one."""

    def publish(count: int, padding: str = "") -> None:
        with Connection(rabbitmq_url) as connection, connection.channel() as channel:
            Queue(queue, durable=False, auto_delete=False, channel=channel).declare()
            for number in range(count):
                body = [number, padding] if padding else number
                Producer(channel).publish(body, routing_key=queue)

    return publish


@pytest.fixture
def holding(
    receiver: Callable[[], Receiver], send: Callable[..., None]
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


def test_what_is_long_in_hand_costs_no_memory_for_what_came_after_it(
    holding: Callable[[int], Receiver], frames: list[tuple[int, bool]]
) -> None:
    worker = holding(100)
    first, *others = worker.messages
    for message in random.Random(1).sample(others, 99):  # noqa: S311 - an order, not a secret
        message.ack()
    assert len(worker.channel._last_of_run) == len(worker.channel._first_of_run) == 1
    with worker.channel.together():
        first.ack()
    assert frames[99:] == [(1, True)]


def test_a_block_within_a_block_is_one(
    holding: Callable[[int], Receiver], frames: list[tuple[int, bool]]
) -> None:
    worker = holding(4)
    first, second, third, fourth = worker.messages
    with worker.channel.together():
        first.ack()
        with worker.channel.together():
            second.ack()
        assert frames == []
        third.ack(multiple=True)
        fourth.ack()
    assert frames == [(3, True), (4, True)]


def test_what_could_not_be_rejected_is_not_acknowledged_with_the_others(
    holding: Callable[[int], Receiver],
    frames: list[tuple[int, bool]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = holding(3)
    with monkeypatch.context() as broken:
        broken.setattr(pyamqp.Channel, "basic_reject", Mock(side_effect=TimeoutError))
        with pytest.raises(TimeoutError):
            worker.messages[0].reject(requeue=True)
    with worker.channel.together():
        worker.messages[1].ack()
        worker.messages[2].ack()
    assert frames == [(2, False), (3, False)]


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


@pytest.fixture
def turns(receiver: Callable[[], Receiver]) -> Iterator[Callable[[Receiver, int], None]]:
    """Have a worker's loop turn until a receiver has so many messages."""
    hub = Hub()

    def turn(worker: Receiver, count: int) -> None:
        worker.consume()
        worker.connection.register_with_event_loop(hub)
        deadline = time.monotonic() + 60
        while len(worker.messages) < count and time.monotonic() < deadline:
            next(hub.loop)

    yield turn
    hub.close()


@pytest.mark.parametrize("piece", [1, 7, MAX_READ])
def test_a_workers_loop_receives_all_in_order_in_whatever_pieces_they_come(
    piece: int,
    receiver: Callable[[], Receiver],
    send: Callable[..., None],
    turns: Callable[[Receiver, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rabbitmq_transport, "MAX_READ", piece)
    send(50)
    worker = receiver()
    turns(worker, 50)
    assert [each.decode() for each in worker.messages] == list(range(50))


def test_a_message_of_several_frames_is_received_whole(
    receiver: Callable[[], Receiver],
    send: Callable[..., None],
    turns: Callable[[Receiver, int], None],
) -> None:
    send(3, padding=300_000 * "x")
    worker = receiver()
    turns(worker, 3)
    assert [each.decode() for each in worker.messages] == [
        [number, 300_000 * "x"] for number in range(3)
    ]


def _nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = b"A" + struct.pack(">I", len(inner)) + inner
    return inner


def _header(value: bytes) -> bytes:
    """The properties that hold one header of this value, as they are on the wire."""
    table = b"\x01x" + value
    return struct.pack(">HI", 0x2000, len(table)) + table


UNREADABLE = {
    "a time in milliseconds": _header(b"T" + struct.pack(">Q", 1_796_071_200_000)),
    "the largest time": _header(b"T" + b"\xff" * 8),
    "arrays in arrays": _header(_nested(3_000)),
    "a type of content that is not UTF-8": struct.pack(">H", 0x8000) + b"\x02\xff\xfe",
}


@pytest.mark.parametrize("properties", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_message_whose_properties_cannot_be_read_comes_without_them(
    properties: bytes,
    rabbitmq_url: str,
    queue: str,
    receiver: Callable[[], Receiver],
    send: Callable[..., None],
    turns: Callable[[Receiver, int], None],
) -> None:
    send(1)
    with Connection(rabbitmq_url) as connection, connection.channel() as channel:
        body, server = b"seven", channel.connection.transport
        published = struct.pack(">HH", 60, 40) + dumps("Bssbb", (0, "", queue, False, False))
        head = struct.pack(">HHQ", 60, 0, len(body)) + properties
        for kind, payload in ((1, published), (2, head), (3, body)):
            frame = struct.pack(">BHI", kind, channel.channel_id, len(payload)) + payload
            server.write(frame + b"\xce")
        # The server has taken what came before this.
        channel.queue_declare(queue, passive=True)
    send(1)
    worker = receiver()
    turns(worker, 3)
    assert [each.body for each in worker.messages] == ["0", b"seven", "0"]
    assert [each.headers for each in worker.messages] == [{}] * 3
    for each in worker.messages:
        each.ack()


def test_a_handler_may_ask_the_server_something_while_others_have_arrived(
    receiver: Callable[[], Receiver],
    send: Callable[..., None],
    turns: Callable[[Receiver, int], None],
    queue: str,
) -> None:
    send(30)
    worker = receiver()

    class Asking(list[Any]):
        def append(self, message: Any) -> None:
            super().append(message)
            worker.channel.queue_declare(queue, passive=True)

    worker.messages = Asking()
    turns(worker, 30)
    assert [each.decode() for each in worker.messages] == list(range(30))


def test_a_turn_of_the_loop_takes_what_has_arrived_but_not_for_ever(
    receiver: Callable[[], Receiver], send: Callable[..., None], eventually: Callable[..., None]
) -> None:
    send(20, padding=2_000 * "x")
    worker = receiver()
    worker.consume()
    connection = worker.channel.connection
    arrived = 2 * MAX_READ
    eventually(lambda: len(connection.sock.recv(arrived, socket.MSG_PEEK)) == arrived)
    worker.connection.transport.on_readable(connection, None)
    assert 0 < len(worker.messages) <= MAX_READ // 2_000


def test_the_loop_does_not_wait_for_the_rest_of_a_frame() -> None:
    server, client = socket.socketpair()
    reader: Any = TCPTransport("127.0.0.1")
    reader.sock = client
    reader._setup_transport()
    frames: list[Any] = []
    connection = SimpleNamespace(connected=True, transport=reader, on_inbound_frame=frames.append)
    transport = rabbitmq_transport.Transport(SimpleNamespace())
    sent = b"".join(struct.pack(">BHI3sB", 1, 7, 3, body, 0xCE) for body in (b"one", b"two"))
    with server, client:
        # A turn that waited for the rest would end by this.
        client.settimeout(5)
        for begin, end, whole in ((0, 1, 0), (1, 8, 0), (8, 10, 0), (10, 14, 1), (14, 22, 2)):
            server.sendall(sent[begin:end])
            transport.on_readable(connection, None)
            assert len(frames) == whole
    assert frames == [(1, 7, b"one"), (1, 7, b"two")]


def test_a_lost_connection_is_told_to_the_worker(receiver: Callable[[], Receiver]) -> None:
    worker = receiver()
    transport, connection = worker.connection.transport, worker.channel.connection
    transport.on_readable(connection, None)
    connection.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OSError):  # noqa: PT011 - a reset, or an end, as it comes
        transport.on_readable(connection, None)
    with pytest.raises(RecoverableConnectionError):
        transport.on_readable(connection, None)


def test_a_tls_server_is_spoken_to_by_tls() -> None:
    connection = Connection("amqps://127.0.0.1:1//", transport=TLS_NAME)
    assert isinstance(connection.transport, rabbitmq_transport.Transport)
    assert connection.ssl == {"server_hostname": "127.0.0.1"}
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
    _choose_transport(app)
    assert app.conf.broker_transport == transport
    own = install(Celery("own", broker="amqp://127.0.0.1//", set_as_current=False))
    own.conf.broker_transport = "amqp"
    _choose_transport(own)
    assert own.connection_for_read().transport_cls == "amqp"
    assert broker.connect().transport_cls == "amqp"


@pytest.mark.parametrize(("transport", "survives"), [(NAME, True), ("pyamqp", False)])
def test_a_forked_child_leaves_its_parents_connection_alone(
    rabbitmq_url: str, transport: str, survives: bool
) -> None:
    """Kombu's own does not; once it does, ours need not."""
    with Connection(rabbitmq_url, transport=transport) as connection:
        connection.connect()

        def collect() -> str:
            connection.collect()
            return "collected"

        assert said_by_a_child(collect) == "collected"
        try:
            connection.default_channel.queue_declare("", exclusive=True)
        except OSError:
            assert not survives
            connection.collect()
        else:
            assert survives
