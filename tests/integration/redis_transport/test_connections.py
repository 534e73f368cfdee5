"""A transport's connections and consumers, and what is left when they are lost."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from inbox import Connect, Inbox, pump, send, wait_until
from kombu import Connection, Exchange, Producer, Queue
from kombu.asynchronous import Hub
from redis import Redis
from redis.exceptions import AuthenticationError

from cos_events.embedded import EmbeddedValkey

# Connections


def test_a_closed_connection_connects_again(connection: Connection) -> None:
    for _ in range(2):
        assert connection.connect()
        connection.close()
        assert connection.connection is None
    assert connection.default_channel
    assert connection.connected


@pytest.mark.parametrize("prefix", [""])
def test_a_wrong_password_is_refused_and_a_server_that_is_away_is_a_connection_error(
    connection: Connection, scheme: str
) -> None:
    port = connection.port
    wrong = Connection(f"{scheme}://nobody:wrong@127.0.0.1:{port}/0")
    with pytest.raises(AuthenticationError):
        wrong.connect()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = Connection(f"{scheme}://127.0.0.1:{unused.getsockname()[1]}/0")
        with pytest.raises(away.connection_errors):
            away.channel()


# Lost consumers and connections


def test_a_consumer_that_ends_with_its_first_message_leaves_the_rest(connect: Connect) -> None:
    connection, hub = connect(), Hub()
    send(connection, "q", *range(5))
    inbox = Inbox(connection, "q")

    def take_one(message: Any) -> None:
        inbox.messages.append(message)
        message.ack()
        inbox.consumer.cancel()

    inbox.consumer.on_message = take_one
    with closing(hub):
        connection.register_with_event_loop(hub)
        wait_until(lambda: inbox.messages, hub.run_once)
        assert inbox.bodies() == [0]
        connection.release()
        assert sorted(Inbox(connect(), "q").receive(4)) == [1, 2, 3, 4]


def test_what_is_unacknowledged_when_the_connection_closes_comes_again(connect: Connect) -> None:
    connection = connect()
    send(connection, "q", 1, 2, 3)
    inbox = Inbox(connection, "q")
    inbox.receive(3)
    inbox.messages[1].ack()
    connection.release()
    again = Inbox(connect(), "q")
    assert sorted(again.receive(2)) == [1, 3]
    assert all(each.headers["redelivered"] for each in again.messages)


def test_what_was_unacknowledged_when_the_server_cut_the_connection_comes_again(
    valkey: EmbeddedValkey, scheme: str
) -> None:
    url = valkey.url.replace("redis://", f"{scheme}://")
    with Connection(url) as connection, Redis.from_url(valkey.url) as admin:
        send(connection, "q", 1, 2, 3)
        inbox = Inbox(connection, "q")
        inbox.receive(3)
        inbox.messages[0].ack()
        pump(connection)
        admin.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(connection.connection_errors):
            wait_until(lambda: False, lambda: pump(connection))
        connection.collect()
        again = Inbox(connection, "q")
        assert sorted(again.receive(2)) == [2, 3]
        again.ack_all()
        assert admin.hlen("unacked") == 0


def run(hub: Hub) -> Callable[[], None]:
    def step() -> None:
        for each in list(hub.on_tick):
            each()
        for file, _ in hub.poller.poll(0.1):
            if file in hub.readers:
                callback, arguments = hub.readers[file]
                callback(*arguments)
        hub.fire_timers()

    return step


@pytest.mark.parametrize("kind", ["direct", "fanout"])
def test_an_event_loop_goes_on_after_the_socket_was_replaced(connect: Connect, kind: str) -> None:
    connection, hub = connect(), Hub()
    # Kombu remembers which queues are of a fanout exchange for the whole process.
    exchange, name = Exchange(f"again.{kind}", type=kind), f"again.{kind}"
    inbox = Inbox(connection, Queue(name, exchange, routing_key=name))
    with closing(hub):
        connection.register_with_event_loop(hub)
        step = run(hub)
        step()
        client = inbox.channel.subclient if kind == "fanout" else inbox.channel.client
        for number in range(3):
            client.connection.disconnect()
            client.connection.connect()
            if kind == "fanout":
                wait_until(lambda: listeners(connect()) == 1, step)
            Producer(connect().channel(), exchange).publish(
                number, routing_key=name, declare=[exchange]
            )
            wait_until(lambda wanted=number: len(inbox.messages) > wanted, step)
        assert inbox.bodies() == [0, 1, 2]
        inbox.ack_all()
        connection.release()


def listeners(connection: Connection) -> int:
    """How many patterns are subscribed to."""
    found = connection.default_channel.client.pubsub_numpat()
    connection.release()
    return int(found)


def test_an_event_loop_acknowledges_what_another_thread_has_done(
    connect: Connect, redis: Redis, prefix: str
) -> None:
    connection, hub, done = connect(), Hub(), []
    send(connection, "q", 0, 1)
    inbox = Inbox(connection, "q", prefetch=1)

    def work(message: Any) -> None:
        def finish() -> None:
            message.ack()
            done.append(message.decode())

        threading.Thread(target=hub.call_soon, args=(finish,)).start()

    inbox.consumer.on_message = work
    with closing(hub):
        connection.register_with_event_loop(hub)
        wait_until(
            lambda: len(done) == 2 and redis.hlen(f"{prefix}unacked") == 0,
            hub.run_once,
        )
        assert done == [0, 1]
        connection.release()
