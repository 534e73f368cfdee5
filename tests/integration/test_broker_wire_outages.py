"""What `BrokerWire` promises while its broker is away, frozen or emptied, on each broker."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from urllib.parse import urlsplit

import pytest
from celery import Celery
from kombu import Connection
from queues import queued
from redis import Redis

from cos_events import broker, install
from cos_events.broadcast import BrokerWire
from cos_events.broadcast.rabbitmq import RabbitMQWire
from cos_events.broadcast.redis import RedisWire
from cos_events.embedded import EmbeddedValkey
from cos_events.errors import BroadcastError
from cos_events.recording import make_envelope
from cos_events.store.outbox import Pending
from cos_events.subscription import Recipient
from cos_events.topology import channel_name

WIRE_TIMEOUT = 0.5
BOUND = 6.0
"""Seconds: to connect, to send and to give the connection up may each take the timeout, or more."""


class ValkeyOutages:
    """A Valkey of the test's own goes away, and comes back empty, or is frozen."""

    make_wire = RedisWire

    def __init__(self, valkey: EmbeddedValkey) -> None:
        self._valkey = valkey
        self.url = self.plain_url = valkey.url

    @contextmanager
    def away(self) -> Iterator[None]:
        self._valkey.stop()
        try:
            yield
        finally:
            self._valkey.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        assert self._valkey.pid
        os.kill(self._valkey.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._valkey.pid, signal.SIGCONT)


class RabbitMQOutages:
    """The way to the machine's RabbitMQ, which others use too, is cut or held up."""

    make_wire = RabbitMQWire

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 5672)
        self._held, self._cut = threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        credentials = parts.netloc.rpartition("@")[0]
        self.plain_url = url
        self.url = parts._replace(netloc=f"{credentials}@127.0.0.1:{port}").geturl()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self._server) as server:
            other = {client: server, server: client}
            while not self._cut.is_set():
                # What is held up still waits in the sockets, as before a frozen server.
                watched = [] if self._held.is_set() else list(other)
                for ready in select.select(watched, [], [], 0.05)[0]:
                    if not (data := ready.recv(65_536)):
                        return
                    other[ready].sendall(data)

    @contextmanager
    def away(self) -> Iterator[None]:
        self._cut.set()
        try:
            yield
        finally:
            self._cut.clear()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self._held.set()
        try:
            yield
        finally:
            self._held.clear()

    def close(self) -> None:
        self._cut.set()
        self._listener.close()


Outages = ValkeyOutages | RabbitMQOutages


@pytest.fixture(params=["redis", "rabbitmq"])
def outages(request: pytest.FixtureRequest, environment: Callable[..., None]) -> Iterator[Outages]:
    """`BROKER_URL` is set to a broker that can go away and freeze."""
    if request.param == "redis":
        made: Outages = ValkeyOutages(request.getfixturevalue("valkey"))
    else:
        made = RabbitMQOutages(request.getfixturevalue("rabbitmq_url"))
    environment(BROKER_URL=made.url, COS_EVENTS_WIRE_TIMEOUT=str(WIRE_TIMEOUT))
    yield made
    if isinstance(made, RabbitMQOutages):
        made.close()


@pytest.fixture
def wire(outages: Outages) -> Iterator[BrokerWire]:
    made = outages.make_wire()
    yield made
    made.close()


@pytest.fixture
def wanting(outages: Outages, unique: Callable[[str], str]) -> Iterator[Recipient]:
    """A subscription to a module of the test's own, called like it; nothing of it is left."""
    name = unique("outage")
    yield Recipient(name, frozenset({name}))
    if isinstance(outages, RabbitMQOutages):
        with Connection(outages.plain_url) as connection, connection.channel() as channel:
            channel.queue_delete(name)
            channel.exchange_delete(channel_name(name))


def event(wanting: Recipient, number: int = 0, size: int = 10) -> Pending:
    data = {"n": number, "text": "x" * size}
    envelope = make_envelope(event_type="event_log", module=wanting.name, data=data)
    return Pending(number, wanting.name, "event_log", envelope.encode())


def fails_in_time(wire: BrokerWire, batch: list[Pending], wanting: Recipient) -> None:
    started = time.monotonic()
    with pytest.raises(BroadcastError):
        wire.send(batch, [wanting])
    assert time.monotonic() - started < BOUND


def outage(outages: Outages, kind: str) -> AbstractContextManager[None]:
    return outages.away() if kind == "away" else outages.frozen()


def test_a_frozen_broker_leaves_no_question_waiting(
    outages: Outages, unique: Callable[[str], str]
) -> None:
    with broker.connect() as connection:
        channel = connection.channel()
        with outages.frozen():
            started = time.monotonic()
            with pytest.raises((*connection.connection_errors, *connection.channel_errors)):
                channel.queue_declare(unique("queue"), passive=True)
            assert time.monotonic() - started < BOUND
            connection.collect()


@pytest.mark.parametrize("kind", ["away", "frozen"])
def test_a_broker_lost_after_a_send_is_an_error_in_bounded_time_and_then_works_again(
    outages: Outages, wire: BrokerWire, wanting: Recipient, kind: str
) -> None:
    wire.send([event(wanting, 1)], [wanting])
    with outage(outages, kind):
        fails_in_time(wire, [event(wanting, 2)], wanting)
        fails_in_time(wire, [event(wanting, 3)], wanting)
    last = event(wanting, 4)
    wire.send([last], [wanting])
    # Not the newest one: what a frozen broker was sent before may reach it after this.
    assert last.envelope in queued(wanting.name)


@pytest.mark.parametrize("kind", ["away", "frozen"])
def test_a_wire_made_while_its_broker_is_lost_works_once_it_is_there(
    outages: Outages, wire: BrokerWire, wanting: Recipient, kind: str
) -> None:
    with outage(outages, kind):
        fails_in_time(wire, [event(wanting, 1)], wanting)
        started = time.monotonic()
        with pytest.raises(BroadcastError):
            wire.open()
        assert time.monotonic() - started < BOUND
    wire.open()
    last = event(wanting, 2)
    wire.send([last], [wanting])
    assert last.envelope in queued(wanting.name)


def test_a_batch_larger_than_any_socket_buffer_fails_in_bounded_time_on_a_frozen_broker(
    outages: Outages, wire: BrokerWire, wanting: Recipient
) -> None:
    wire.send([event(wanting, 1)], [wanting])
    with outages.frozen():
        fails_in_time(wire, [event(wanting, n, size=100_000) for n in range(200)], wanting)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_wire_that_is_interrupted_in_the_middle_of_a_message_begins_anew(
    outages: Outages, wire: BrokerWire, wanting: Recipient
) -> None:
    wire.send([event(wanting, 1)], [wanting])
    batch = [event(wanting, n, size=100_000) for n in range(200)]
    before = signal.signal(signal.SIGUSR1, interrupt)
    here = threading.get_ident()
    timer = threading.Timer(WIRE_TIMEOUT / 2, signal.pthread_kill, [here, signal.SIGUSR1])
    try:
        with outages.frozen(), pytest.raises(KeyboardInterrupt):
            timer.start()
            wire.send(batch, [wanting])
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    last = event(wanting, 2)
    wire.send([last], [wanting])
    assert last.envelope in queued(wanting.name)


def test_closing_a_wire_on_a_frozen_broker_takes_a_bounded_time(
    outages: Outages, wire: BrokerWire, wanting: Recipient
) -> None:
    wire.send([event(wanting, 1)], [wanting])
    with outages.frozen():
        started = time.monotonic()
        wire.close()
        assert time.monotonic() - started < BOUND


def test_after_flushall_the_next_send_arrives(
    valkey: EmbeddedValkey, environment: Callable[..., None], unique: Callable[[str], str]
) -> None:
    environment(BROKER_URL=valkey.url)
    name = unique("outage")
    wanting = Recipient(name, frozenset({name}))
    wire = RedisWire()
    wire.send([event(wanting, 1)], [wanting])
    with Redis.from_url(valkey.url) as redis:
        redis.flushall()
    second, third = event(wanting, 2), event(wanting, 3)
    wire.send([second], [wanting])
    wire.send([third], [wanting])
    wire.close()
    assert queued(name) == [second.envelope, third.envelope]


def test_a_workers_connection_does_not_wait_for_ever_for_a_broker_that_stands_still(
    outages: Outages, unique: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "WORKERS_READ_TIMEOUT", WIRE_TIMEOUT)
    app = install(Celery(unique("app"), broker=outages.url, set_as_current=False))
    app.conf.broker_transport = broker.transport_of(outages.url)
    with app.connection_for_read() as connection:
        producer = connection.Producer(auto_declare=False)
        producer.publish({}, exchange="", routing_key="nowhere")
        started = time.monotonic()
        with outages.frozen(), pytest.raises(connection.connection_errors):
            producer.publish({}, exchange="", routing_key="nowhere", retry=False)
        connection.collect()
    assert time.monotonic() - started < BOUND
