"""What is consumed without acknowledgement, by our transport alone."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from inbox import PATIENCE, Connect, Inbox, send, wait_until
from kombu import Connection, Queue
from kombu.asynchronous import Hub
from redis import Redis

from cos_events.redis_unacked import GATHER_SECONDS


@pytest.fixture
def scheme() -> str:
    return "redis-batch"


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


def in_loop(inbox: Inbox, hub: Hub) -> Inbox:
    """The same, as a worker's."""
    inbox.channel.connection.register_with_event_loop(inbox.connection.connection, hub)
    return inbox


def received(inbox: Inbox, hub: Hub, count: int = 1) -> list[object]:
    wait_until(lambda: len(inbox.messages) >= count, hub.run_once)
    return inbox.bodies()


def asked(inbox: Inbox, hub: Hub) -> None:
    """Let it wait for messages."""
    wait_until(lambda: inbox.channel._in_poll, hub.run_once)


def test_in_a_workers_loop_all_that_waits_comes_in_one_trip_and_in_order(
    connection: Connection, hub: Hub
) -> None:
    send(connection, "q", *range(30))
    inbox = in_loop(Inbox(connection, "q", no_ack=True), hub)
    assert received(inbox, hub) == list(range(30))


def test_what_is_urgent_comes_first_and_no_queue_is_forgotten(
    connection: Connection, hub: Hub
) -> None:
    send(connection, "q", "later", priority=6)
    send(connection, "q", "first")
    send(connection, "other", "too")
    inbox = in_loop(Inbox(connection, "q", "other", no_ack=True), hub)
    found = received(inbox, hub, 3)
    assert sorted(map(str, found)) == ["first", "later", "too"]
    assert found.index("first") < found.index("later")


def test_to_acknowledge_it_all_the_same_does_nothing(
    connection: Connection, hub: Hub, redis: Redis, prefix: str
) -> None:
    send(connection, "q", 1)
    inbox = in_loop(Inbox(connection, "q", no_ack=True), hub)
    received(inbox, hub)
    inbox.ack_all()
    assert redis.hlen(f"{prefix}unacked") == 0
    assert not inbox.channel.qos._acknowledged


def test_a_queue_with_acknowledgements_beside_it_keeps_them(
    connection: Connection, hub: Hub, redis: Redis, prefix: str
) -> None:
    send(connection, "q", 1, 2)
    send(connection, "kept", 3, 4)
    inbox = in_loop(Inbox(connection, "q", no_ack=True), hub)
    inbox.consumer.no_ack = False
    inbox.consumer.add_queue(Queue("kept"))
    inbox.consumer.consume()
    assert sorted(received(inbox, hub, 4)) == [1, 2, 3, 4]  # type: ignore[type-var]
    assert redis.hlen(f"{prefix}unacked") == 2


def test_beside_a_queue_with_acknowledgements_many_come_at_once_too(
    connection: Connection, hub: Hub
) -> None:
    send(connection, "q", *range(30))
    inbox = in_loop(Inbox(connection, "q", no_ack=True), hub)
    inbox.consumer.no_ack = False
    inbox.consumer.add_queue(Queue("kept"))
    inbox.consumer.consume()
    inbox.channel.is_busy = lambda: bool(inbox.messages)
    assert received(inbox, hub, 30) == list(range(30))


def test_what_was_taken_and_not_delivered_when_the_worker_ends_is_put_back_in_order(
    connect: Connect, hub: Hub
) -> None:
    send(connect(), "q", *range(5))
    inbox = in_loop(Inbox(connect(), "q", no_ack=True), hub)

    def run_in_the_loop(message: object) -> None:
        time.sleep(2 * GATHER_SECONDS)
        inbox.messages.append(message)

    inbox.consumer.on_message = run_in_the_loop
    assert received(inbox, hub) == [0]
    inbox.channel.close()
    assert Inbox(connect(), "q").receive(4) == [1, 2, 3, 4]


def test_while_its_consumer_is_busy_what_waits_stays_in_redis_and_then_comes_in_order(
    connection: Connection, hub: Hub, redis: Redis, prefix: str
) -> None:
    inbox = in_loop(Inbox(connection, "q", no_ack=True), hub)
    inbox.channel.is_busy = lambda: True
    send(connection, "q", *range(3))
    turns: list[int] = []
    for turn in range(5):
        hub.call_later(turn / 50, turns.append, turn)
    wait_until(lambda: len(turns) == 5, hub.run_once)
    assert redis.llen(f"{prefix}q") == 3
    inbox.channel.is_busy = lambda: False
    assert received(inbox, hub, 3) == [0, 1, 2]


def test_outside_of_a_loop_one_comes_and_the_others_are_left_to_the_next(
    connection: Connection, redis: Redis, prefix: str
) -> None:
    send(connection, "q", *range(5))
    inbox = Inbox(connection, "q", no_ack=True)
    connection.drain_events(timeout=PATIENCE)
    assert inbox.bodies() == [0]
    assert redis.llen(f"{prefix}q") == 4


def test_what_comes_while_the_worker_ends_is_put_back_in_order(
    connect: Connect, hub: Hub, redis: Redis, prefix: str
) -> None:
    send(connect(), "q", *range(3))
    queue = f"{prefix}q"
    waiting = redis.lrange(queue, 0, -1)
    redis.delete(queue)
    inbox = in_loop(Inbox(connect(), "q", no_ack=True), hub)
    asked(inbox, hub)
    redis.rpush(queue, *waiting)
    inbox.channel.close()
    assert inbox.messages == []
    assert Inbox(connect(), "q").receive(3) == [0, 1, 2]


def test_a_redis_that_lacks_the_command_is_asked_otherwise(
    connection: Connection, connect: Connect, hub: Hub, redis: Redis
) -> None:
    send(connection, "q", *range(3))
    redis.acl_setuser(
        "plain",
        enabled=True,
        passwords=["+x"],
        keys=["*"],
        channels=["*"],
        categories=["+@all"],
        commands=["-blmpop"],
    )
    try:
        plain = connect()
        plain.userid, plain.password = "plain", "x"
        inbox = in_loop(Inbox(plain, "q", no_ack=True), hub)
        assert received(inbox, hub, 3) == [0, 1, 2]
        assert inbox.channel._command == "BRPOP"
        plain.release()
    finally:
        redis.acl_deluser("plain")
