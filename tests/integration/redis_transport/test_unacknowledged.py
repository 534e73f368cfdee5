"""What is popped and not acknowledged yet: noted as Kombu notes it, and put back as it stood."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu import Connection, Consumer, Producer, Queue
from kombu.asynchronous import Hub
from redis import Redis
from redis.commands.core import Script
from redis.exceptions import ConnectionError as RedisConnectionError

from cos_events import redis_unacked
from cos_events.embedded import Servers
from cos_events.redis_transport import NAME
from cos_events.redis_unacked import GATHER_SECONDS

AT_ONCE = {"visibility_timeout": 0, "unacked_restore_throttle": 1}


@pytest.fixture
def connect(servers: Servers, redis: Redis) -> Iterator[Callable[..., Connection]]:
    """Connections to the empty database, with the transport."""
    url = f"{servers.redis_url.rpartition('/')[0]}/6"
    made: list[Connection] = []

    def make(**options: Any) -> Connection:
        made.append(Connection(url, transport=NAME, transport_options=options))
        return made[-1]

    yield make
    for each in made:
        each.release()


def send(connection: Connection, *bodies: Any) -> None:
    with connection.channel() as channel:
        for body in bodies:
            Producer(channel).publish(body, routing_key="q")


def consume(connection: Connection, take: Callable[[Any], None], prefetch: int = 0) -> Any:
    channel: Any = connection.channel()
    queues = [Queue("q", channel=channel)]
    Consumer(channel, queues, on_message=take, prefetch_count=prefetch).consume()
    return channel


def drain(connection: Connection) -> None:
    """Until nothing comes any more."""
    while True:
        try:
            connection.drain_events(timeout=1)
        except TimeoutError:
            return


def drain_until(connection: Connection, ended: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not ended():
        assert time.monotonic() < deadline
        try:
            connection.drain_events(timeout=0.2)
        except TimeoutError:
            continue


def test_a_fetch_that_is_sent_twice_forgets_nothing(
    connect: Callable[..., Connection], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Script.__call__

    def twice(script: Script, *args: Any, **options: Any) -> Any:
        # As redis-py does with `retry_on_timeout`, when the first answer is late.
        if script.script == redis_unacked._TAKE:
            run(script, *args, **options)
        return run(script, *args, **options)

    send(connect(), *range(12))
    got: list[Any] = []
    monkeypatch.setattr(Script, "__call__", twice)
    connection = connect()
    consume(connection, got.append, prefetch=4)
    drain(connection)
    monkeypatch.undo()
    delivered = {message.decode() for message in got}
    noted = redis.hlen("unacked")
    assert len(delivered) + redis.llen("q") + (noted - len(delivered)) == 12
    connection.release()
    later: list[Any] = []
    connection = connect(**AT_ONCE)
    consume(connection, lambda message: (later.append(message.decode()), message.ack()))
    drain_until(connection, lambda: set(later) == set(range(12)))


def test_whoever_ends_first_acknowledges_the_copies_of_others_too(
    connect: Callable[..., Connection], redis: Redis
) -> None:
    send(connect(), "slow")
    first: list[Any] = []
    begun = connect()
    consume(begun, first.append)
    drain(begun)
    second: list[Any] = []
    restored = connect(**AT_ONCE)
    consume(restored, second.append, prefetch=1)
    drain_until(restored, lambda: second)
    assert (len(first), len(second), redis.hlen("unacked")) == (1, 1, 1)
    first[0].ack()
    assert (redis.llen("q"), redis.hlen("unacked"), redis.zcard("unacked_index")) == (0, 0, 0)


@pytest.mark.parametrize(
    "header", ["another", '"delivery_tag": "mine"', {"delivery_tag": "mine"}], ids=str
)
def test_a_message_that_speaks_of_tags_is_noted_and_acknowledged_like_any(
    connect: Callable[..., Connection], redis: Redis, header: Any
) -> None:
    with connect() as connection, connection.channel() as channel:
        for body in ({"delivery_tag": "mine"}, 2):
            Producer(channel).publish(body, routing_key="q", headers={"about": header})
    got: list[Any] = []
    connection = connect()
    consume(connection, got.append)
    drain(connection)
    assert [message.decode() for message in got] == [{"delivery_tag": "mine"}, 2]
    assert redis.hlen("unacked") == 2
    for message in got:
        message.ack()
    assert redis.hlen("unacked") == 0


def test_bodies_may_travel_as_they_are(connect: Callable[..., Connection]) -> None:
    plain = connect(body_encoding="utf-8")
    send(plain, "as it is")
    got: list[Any] = []
    consume(plain, got.append)
    drain(plain)
    assert [message.decode() for message in got] == ["as it is"]


def test_many_bytes_end_a_fetch(
    connect: Callable[..., Connection], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_unacked, "MAX_FETCHED_BYTES", 10_000)
    send(connect(), *("x" * 4_000 for _ in range(6)))
    got: list[Any] = []
    connection = connect()
    consume(connection, got.append)
    connection.drain_events(timeout=5)
    assert (len(got), redis.llen("q")) == (2, 4)


def test_what_follows_a_message_that_raises_stands_where_it_stood(
    connect: Callable[..., Connection],
) -> None:
    connection = connect()
    send(connection, *range(6))
    order: list[int] = []

    def take(message: Any) -> None:
        number = message.decode()
        order.append(number)
        message.ack()
        if number == 1:
            raise RuntimeError

    consume(connection, take, prefetch=4)
    with pytest.raises(RuntimeError):
        drain(connection)
    drain(connection)
    assert order == [0, 1, 2, 3, 4, 5]


def test_where_a_task_runs_in_the_loop_its_turn_comes_between_two(
    connect: Callable[..., Connection], redis: Redis
) -> None:
    connection, hub = connect(), Hub()
    send(connection, *range(4))
    order: list[Any] = []

    def run(message: Any) -> None:
        time.sleep(GATHER_SECONDS * 1.5)
        order.append(message.decode())
        message.ack()

    channel = consume(connection, run)
    connection.transport.register_with_event_loop(connection.connection, hub)
    connection.drain_events(timeout=5)
    assert order == [0]
    assert not channel.qos.can_consume()
    hub.fire_timers(max_timers=1)
    assert order == [0, 1]
    channel.close()
    hub.fire_timers()
    assert (order, redis.llen("q"), redis.hlen("unacked")) == ([0, 1], 2, 0)
    again: list[Any] = []
    successor = connect()
    consume(successor, again.append)
    drain(successor)
    assert [message.decode() for message in again] == [2, 3]
    hub.close()


def test_an_acknowledgement_that_meets_a_lost_connection_is_sent_by_the_next(
    connect: Callable[..., Connection], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, hub = connect(), Hub()
    send(connection, 1)
    got: list[Any] = []
    channel = consume(connection, got.append)
    drain(connection)
    connection.transport.register_with_event_loop(connection.connection, hub)
    got[0].ack()

    def lost(*_: Any, **__: Any) -> None:
        raise RedisConnectionError

    with monkeypatch.context() as context:
        context.setattr("redis.client.Pipeline.execute", lost)
        with pytest.raises(RedisConnectionError):
            channel.qos.flush()
    assert redis.hlen("unacked") == 1
    channel.close()
    assert (redis.llen("q"), redis.hlen("unacked")) == (0, 0)
    hub.close()
