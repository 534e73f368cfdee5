"""What is published, and where it arrives."""

from __future__ import annotations

import pytest
from inbox import Connect, Inbox, nothing_comes, pump, send, wait_until
from kombu import Connection, Exchange, Producer, Queue
from redis import Redis

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
