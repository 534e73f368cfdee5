"""What Kombu promises of its Redis transport: on its own, and on ours.

The behaviours are those of Kombu's own integration tests, which run with a prefix of all keys too.
What ours alone does stands in `test_redis_transport.py`.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.asynchronous import Hub
from redis import Redis
from redis.exceptions import AuthenticationError

import cos_events.redis_transport  # noqa: F401 - makes the scheme known
from cos_events.embedded import EmbeddedValkey, Servers

PATIENCE = 60.0
Connect = Callable[..., Connection]


@pytest.fixture(params=["redis", "redis-batch"])
def scheme(request: pytest.FixtureRequest) -> str:
    """Kombu's own transport, and ours."""
    return str(request.param)


@pytest.fixture(params=["", "prefix."], ids=["plain", "prefixed"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def redis(servers: Servers) -> Iterator[Redis]:
    """An empty database of the tests' Valkey."""
    with Redis.from_url(f"{servers.redis_url.rpartition('/')[0]}/6") as client:
        client.flushdb()
        yield client
        client.flushdb()


@pytest.fixture
def connect(servers: Servers, redis: Redis, scheme: str, prefix: str) -> Iterator[Connect]:
    """Connections to that database, by the transport under test."""
    opened: list[Connection] = []
    address = servers.redis_url.rpartition("/")[0].partition("://")[2]

    def make(**options: Any) -> Connection:
        options = {"global_keyprefix": prefix, **options}
        opened.append(Connection(f"{scheme}://{address}/6", transport_options=options))
        return opened[-1]

    yield make
    for each in opened:
        each.release()


@pytest.fixture
def connection(connect: Connect) -> Connection:
    return connect()


class Inbox:
    """Consumes queues, and keeps the messages that came."""

    def __init__(
        self, connection: Connection, *queues: Queue | str, prefetch: int = 0, no_ack: bool = False
    ) -> None:
        self.connection = connection
        self.messages: list[Any] = []
        self.channel: Any = connection.channel()
        self.consumer = Consumer(
            self.channel,
            [Queue(each) if isinstance(each, str) else each for each in queues],
            on_message=self.messages.append,
            accept=["json", "text/plain"],
            no_ack=no_ack,
            prefetch_count=prefetch,
        )
        self.consumer.consume()

    def receive(self, count: int) -> list[Any]:
        """Wait until it has so many; returns their bodies."""
        wait_until(lambda: len(self.messages) >= count, lambda: pump(self.connection))
        return self.bodies()

    def bodies(self) -> list[Any]:
        return [each.decode() for each in self.messages]

    def ack_all(self) -> None:
        for message in self.messages:
            if not message.acknowledged:
                message.ack()


def wait_until(reached: Callable[[], object], step: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline
        step()


def pump(connection: Connection, timeout: float = 0.2) -> bool:
    """Handle what comes, if anything does."""
    try:
        connection.drain_events(timeout=timeout)
    except TimeoutError:
        return False
    return True


def nothing_comes(connection: Connection) -> bool:
    """Whether all that was there has been handled."""
    wait_until(lambda: not pump(connection), lambda: None)
    return True


def send(connection: Connection, queue: str, *bodies: Any, priority: int = 0) -> None:
    with connection.channel() as channel:
        for body in bodies:
            Producer(channel).publish(body, routing_key=queue, priority=priority)


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


# Messages


def test_a_message_arrives_with_its_body_headers_and_origin(connection: Connection) -> None:
    exchange = Exchange("orders", type="direct")
    queue = Queue("new", exchange, routing_key="order.new")
    inbox = Inbox(connection, queue)
    Producer(connection.channel(), exchange).publish(
        {"hello": "wörld"}, routing_key="order.new", headers={"k": "v"}, correlation_id="c"
    )
    assert inbox.receive(1) == [{"hello": "wörld"}]
    message = inbox.messages[0]
    assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")
    assert (message.headers, message.properties["correlation_id"]) == ({"k": "v"}, "c")
    origin = message.delivery_info
    assert (origin["exchange"], origin["routing_key"]) == ("orders", "order.new")


def test_bytes_and_compressed_bodies_arrive_as_they_were(connection: Connection) -> None:
    everything = bytes(range(256)) * 400
    producer = Producer(connection.channel())
    for compression in (None, "zlib"):
        producer.publish(
            everything,
            routing_key="q",
            serializer="raw",
            content_type="application/data",
            content_encoding="binary",
            compression=compression,
        )
    inbox = Inbox(connection, "q")
    inbox.consumer.accept = None
    inbox.receive(0)
    wait_until(lambda: len(inbox.messages) == 2, lambda: pump(connection))
    assert [bytes(each._decode()) for each in inbox.messages] == [everything] * 2


def test_an_empty_queue_times_out(connection: Connection) -> None:
    inbox = Inbox(connection, "q")
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.1)
    assert inbox.messages == []


# Exchanges


def test_a_direct_exchange_delivers_by_its_exact_key_and_drops_the_rest(
    connection: Connection,
) -> None:
    exchange = Exchange("direct", type="direct")
    one, two = (Queue(name, exchange, routing_key=name) for name in ("one", "two"))
    first, second = Inbox(connection, one), Inbox(connection, two)
    producer = Producer(connection.channel(), exchange)
    for key in ("one", "three", "two", "one"):
        producer.publish(key, routing_key=key)
    assert first.receive(2) == ["one", "one"]
    assert second.receive(1) == ["two"]
    assert nothing_comes(connection)
    assert (len(first.messages), len(second.messages)) == (2, 1)


def test_a_fanout_exchange_reaches_all_who_listen(connect: Connect) -> None:
    exchange = Exchange("news", type="fanout")
    connections = connect(), connect()
    inboxes = [
        Inbox(each, Queue(f"news.{number}", exchange)) for number, each in enumerate(connections)
    ]
    for each in connections:
        nothing_comes(each)
    Producer(connect().channel(), exchange).publish("hear", declare=[exchange])
    for each in inboxes:
        assert each.receive(1) == ["hear"]
        each.ack_all()


def test_a_cancelled_listener_of_a_fanout_exchange_hears_no_more(connection: Connection) -> None:
    exchanges = [Exchange(name, type="fanout") for name in ("left", "kept")]
    inboxes = [Inbox(connection, Queue(f"q.{each.name}", each)) for each in exchanges]
    nothing_comes(connection)
    inboxes[0].consumer.cancel()
    for each in exchanges:
        Producer(connection.channel(), each).publish(each.name, declare=[each])
    assert inboxes[1].receive(1) == ["kept"]
    assert nothing_comes(connection)
    assert inboxes[0].messages == []


def test_a_topic_exchange_delivers_by_patterns(connection: Connection) -> None:
    exchange = Exchange("topics", type="topic")
    patterns = {"word": "t.*", "words": "t.#", "all": "#", "exact": "t"}
    inboxes = {
        name: Inbox(connection, Queue(name, exchange, routing_key=pattern))
        for name, pattern in patterns.items()
    }
    producer = Producer(connection.channel(), exchange)
    for key in ("t.1", "t", "t.1.2", "u"):
        producer.publish(key, routing_key=key)
    assert inboxes["all"].receive(4) == ["t.1", "t", "t.1.2", "u"]
    assert inboxes["words"].receive(2) == ["t.1", "t.1.2"]
    assert inboxes["word"].receive(1) == ["t.1"]
    assert inboxes["exact"].receive(1) == ["t"]


def test_an_exchange_without_a_queue_takes_a_message_and_drops_it(
    connection: Connection, redis: Redis
) -> None:
    exchange = Exchange("nobody", type="topic")
    Producer(connection.channel(), exchange).publish(1, routing_key="t", declare=[exchange])
    assert redis.dbsize() == 0


# Priorities


def test_urgent_messages_come_first_and_equals_in_order(connection: Connection) -> None:
    for body, priority in (("first", 6), ("second", 3), ("third", 6), ("fourth", 9), ("fifth", 0)):
        send(connection, "q", body, priority=priority)
    inbox = Inbox(connection, "q")
    assert inbox.receive(5) == ["fifth", "second", "first", "third", "fourth"]


def test_requeued_messages_keep_their_priority(connection: Connection) -> None:
    for body, priority in (("first", 6), ("second", 3), ("third", 6)):
        send(connection, "q", body, priority=priority)
    inbox = Inbox(connection, "q")
    inbox.receive(3)
    for message in inbox.messages:
        message.requeue()
    inbox.consumer.cancel()
    send(connection, "q", "fourth", priority=0)
    again = Inbox(connection, "q")
    assert again.receive(4) == ["fourth", "second", "first", "third"]


# The simple interface


def test_a_simple_queue_puts_gets_and_clears(connection: Connection) -> None:
    with closing(connection.SimpleQueue("simple")) as queue:
        for number in range(4):
            queue.put({"n": number}, headers={"k": "v"})
        message = queue.get_nowait()
        assert (message.payload, message.headers) == ({"n": 0}, {"k": "v"})
        message.ack()
        assert queue.clear() == 3
        with pytest.raises(queue.Empty):
            queue.get_nowait()
        with pytest.raises(queue.Empty):
            queue.get(timeout=0.1)


def test_a_simple_queue_gets_each_message_once_in_order_while_others_are_put(
    connection: Connection,
) -> None:
    with closing(connection.SimpleQueue("simple")) as queue:
        for number in range(3):
            queue.put(number)
        found = []
        for number in range(3, 6):
            message = queue.get(timeout=PATIENCE)
            message.ack()
            found.append(message.payload)
            queue.put(number)
        while len(found) < 6:
            message = queue.get(timeout=PATIENCE)
            message.ack()
            found.append(message.payload)
    assert found == list(range(6))


def test_what_a_simple_queue_did_not_hand_out_is_there_for_the_next(
    connect: Connect, redis: Redis
) -> None:
    first = connect()
    with closing(first.SimpleQueue("simple")) as queue:
        for number in range(3):
            queue.put(number)
        queue.get(timeout=PATIENCE).ack()
    first.release()
    with closing(connect().SimpleQueue("simple")) as queue:
        assert sorted(queue.get(timeout=PATIENCE).payload for _ in range(2)) == [1, 2]


def test_a_simple_buffer_needs_no_acknowledgement(connect: Connect, redis: Redis) -> None:
    connection = connect()
    with closing(connection.SimpleBuffer("buffer")) as buffer:
        buffer.put({"n": 1})
        assert buffer.get(timeout=PATIENCE).payload == {"n": 1}
    connection.release()
    with closing(connect().SimpleBuffer("buffer")) as buffer, pytest.raises(buffer.Empty):
        buffer.get_nowait()


@pytest.mark.parametrize("blocking", [True, False])
def test_acknowledged_and_rejected_messages_are_gone_and_requeued_ones_come_back(
    connection: Connection, redis: Redis, prefix: str, blocking: bool
) -> None:
    with closing(connection.SimpleQueue("simple")) as queue:
        for settle, comes_back in (
            ("ack", False),
            ("reject", False),
            ("reject_log_error", False),
            ("requeue", True),
        ):
            queue.put(settle)
            message = queue.get(timeout=PATIENCE) if blocking else queue.get_nowait()
            arguments = (print, ()) if settle.endswith("log_error") else ()
            getattr(message, settle)(*arguments)
            if comes_back:
                again = queue.get(timeout=PATIENCE)
                assert again.payload == settle
                again.ack()
            with pytest.raises(queue.Empty):
                queue.get_nowait()
    assert redis.hlen(f"{prefix}unacked") == 0


# Publishing in batches


def test_a_batch_goes_together_by_key_pattern_and_priority(connection: Connection) -> None:
    exchange = Exchange("batched", type="topic")
    inbox = Inbox(connection, Queue("all", exchange, routing_key="a.#"))
    nothing_comes(connection)
    producer = Producer(connection.channel(), exchange)
    with producer.batch():
        for number in range(5):
            producer.publish(number, routing_key="a.b")
        producer.publish("dropped", routing_key="b")
        assert nothing_comes(connection)
        assert inbox.messages == []
    assert inbox.receive(5) == list(range(5))
    inbox.consumer.cancel()
    direct = Producer(connection.channel())
    with direct.batch(max_size=2):
        direct.publish("late", routing_key="all", priority=9)
        direct.publish("soon", routing_key="all", priority=0)
        # The third begins another batch.
        direct.publish("soon after", routing_key="all", priority=0)
        assert Inbox(connection, "all").receive(2) == ["soon", "late"]


def test_a_batch_that_fails_sends_nothing(connection: Connection) -> None:
    inbox, producer = Inbox(connection, "q"), Producer(connection.channel())
    with pytest.raises(ZeroDivisionError), producer.batch():
        producer.publish(1, routing_key="q")
        raise ZeroDivisionError
    producer.publish(2, routing_key="q")
    assert inbox.receive(1) == [2]


def test_where_commands_are_retried_a_batch_sends_at_once(connect: Connect) -> None:
    connection = connect(retry_on_timeout=True)
    inbox, producer = Inbox(connection, "q"), Producer(connection.channel())
    with producer.batch():
        producer.publish(1, routing_key="q")
        assert inbox.receive(1) == [1]


# The prefetch window


@pytest.mark.parametrize("prefetch", [1, 3])
def test_no_more_than_the_window_is_unacknowledged(connection: Connection, prefetch: int) -> None:
    send(connection, "q", *range(7))
    inbox = Inbox(connection, "q", prefetch=prefetch)
    while len(inbox.messages) < 7:
        inbox.receive(min(7, len(inbox.messages) + prefetch))
        assert nothing_comes(connection)
        assert sum(not each.acknowledged for each in inbox.messages) <= prefetch
        inbox.ack_all()
    assert inbox.bodies() == list(range(7))


def pop_with_a_shut_window(inbox: Inbox) -> None:
    """A message arrives that was asked for while there was room, of which there is none now."""
    send(inbox.connection, "q", 1)
    inbox.receive(1)
    inbox.connection.transport.cycle.on_poll_start()
    assert inbox.channel._in_poll
    send(inbox.connection, "q", 2)
    inbox.consumer.qos(prefetch_count=1)


def test_a_message_that_finds_the_window_shut_waits_for_room(
    connection: Connection, redis: Redis, prefix: str
) -> None:
    inbox = Inbox(connection, "q", prefetch=2)
    pop_with_a_shut_window(inbox)
    assert nothing_comes(connection)
    assert inbox.bodies() == [1]
    inbox.ack_all()
    assert inbox.receive(2) == [1, 2]
    inbox.ack_all()
    assert redis.hlen(f"{prefix}unacked") == redis.zcard(f"{prefix}unacked_index") == 0


def test_a_message_that_finds_the_window_shut_outlives_the_channel(connect: Connect) -> None:
    connection = connect()
    inbox = Inbox(connection, "q", prefetch=2)
    pop_with_a_shut_window(inbox)
    inbox.consumer.cancel()
    inbox.ack_all()
    inbox.channel.close()
    assert inbox.bodies() == [1]
    assert Inbox(connect(), "q").receive(1) == [2]


def test_several_queues_have_their_turn(connection: Connection) -> None:
    names = ["a", "b", "c"]
    for name in names:
        send(connection, name, *(f"{name}{number}" for number in range(4)))
    inbox = Inbox(connection, *names, prefetch=1)
    for count in range(1, 13):
        inbox.receive(count)
        inbox.ack_all()
    order = inbox.bodies()
    turns = [{each[0] for each in order[start : start + 3]} for start in range(0, 12, 3)]
    assert turns == [set(names)] * 4
    assert [each for each in order if each[0] == "b"] == ["b0", "b1", "b2", "b3"]


@pytest.mark.parametrize(
    ("strategy", "expected"), [("priority", ["b", "a"]), ("sorted", ["a", "b"])]
)
def test_queues_may_have_another_order_than_turns(
    connect: Connect, strategy: str, expected: list[str]
) -> None:
    connection = connect(queue_order_strategy=strategy)
    for name in ("a", "b"):
        send(connection, name, name, name)
    inbox = Inbox(connection, "b", "a", prefetch=1)
    for count in range(1, 5):
        inbox.receive(count)
        inbox.ack_all()
    assert inbox.bodies() == [name for name in expected for _ in range(2)]


def test_without_emulated_acknowledgements_messages_are_consumed_all_the_same(
    connect: Connect, redis: Redis, prefix: str
) -> None:
    connection = connect(ack_emulation=False)
    send(connection, "q", *range(5))
    inbox = Inbox(connection, "q", prefetch=2)
    for count in range(1, 6):
        inbox.receive(count)
        assert redis.hlen(f"{prefix}unacked") == 0
        inbox.ack_all()
    assert inbox.bodies() == list(range(5))
    inbox.channel.close()
    assert redis.llen(f"{prefix}q") == 0


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


# Queues that expire


def test_a_queues_time_to_live_holds_for_all_its_priorities_and_begins_anew_with_each_message(
    connection: Connection, redis: Redis, prefix: str
) -> None:
    def remaining() -> list[int]:
        return [int(redis.pttl(key)) for key in redis.scan_iter(f"{prefix}brief*")]

    queue = Queue("brief", expires=60)
    producer = Producer(connection.channel())
    for priority in (0, 3, 6, 9):
        producer.publish(priority, routing_key="brief", priority=priority, declare=[queue])
    assert len(remaining()) == 4
    assert all(50_000 < each <= 60_000 for each in remaining())
    for key in redis.scan_iter(f"{prefix}brief*"):
        redis.pexpire(key, 1_000)
    producer.publish(1, routing_key="brief")
    assert min(remaining()) > 50_000
