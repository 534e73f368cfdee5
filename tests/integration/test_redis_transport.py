"""The transport for Redis: nothing is lost, whatever it does together."""

from __future__ import annotations

import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from inbox import Inbox
from kombu import Connection, Producer
from kombu.asynchronous import Hub
from kombu.exceptions import KombuError
from redis import Redis

from cos_events import broker, install, redis_transport
from cos_events.app import _choose_transport
from cos_events.embedded import EmbeddedValkey, Servers
from cos_events.embedded.process import free_port
from cos_events.redis_transport import NAME, TLS_NAME
from cos_events.redis_unacked import GATHER_SECONDS

FAST = {"transport": NAME}
STOCK: dict[str, str] = {}
VISIBLE_AT_ONCE = {"visibility_timeout": 0, "unacked_restore_throttle": 1}


@pytest.fixture
def url(servers: Servers) -> Iterator[str]:
    """An empty database of the tests' Valkey."""
    found = f"{servers.redis_url.rpartition('/')[0]}/5"
    with Redis.from_url(found) as client:
        client.flushdb()
    yield found
    with Redis.from_url(found) as client:
        client.flushdb()


@pytest.fixture
def redis(url: str) -> Iterator[Redis]:
    with Redis.from_url(url) as client:
        yield client


def send(url: str, queue: str, *numbers: int, priority: int = 0) -> None:
    with Connection(url, **FAST) as connection, connection.channel() as channel:
        for number in numbers:
            Producer(channel).publish(number, routing_key=queue, priority=priority)


@pytest.fixture
def receiver(url: str) -> Iterator[Callable[..., Inbox]]:
    """Start a receiver; each has a connection of its own."""
    connections: list[Connection] = []

    def start(*queues: str, prefetch: int = 0, **options: Any) -> Inbox:
        connections.append(Connection(url, **{**FAST, **options}))
        return Inbox(connections[-1], *queues, prefetch=prefetch)

    yield start
    for each in connections:
        each.release()


def test_what_waits_comes_in_one_fetch_in_order_and_is_noted_until_it_is_acknowledged(
    url: str, redis: Redis, receiver: Callable[..., Inbox]
) -> None:
    send(url, "q", *range(30))
    worker = receiver("q")
    assert worker.receive(1) == list(range(30))
    assert (redis.llen("q"), redis.hlen("unacked"), redis.zcard("unacked_index")) == (0, 30, 30)
    for message in worker.messages:
        message.ack()
    assert (redis.hlen("unacked"), redis.zcard("unacked_index")) == (0, 0)


def test_a_fetch_stays_within_the_prefetch_window(
    url: str, redis: Redis, receiver: Callable[..., Inbox]
) -> None:
    send(url, "q", *range(30))
    worker = receiver("q", prefetch=4)
    assert worker.receive(4) == [0, 1, 2, 3]
    assert redis.llen("q") == 26
    for message in worker.messages[:2]:
        message.ack()
    assert worker.receive(6) == [0, 1, 2, 3, 4, 5]
    assert redis.llen("q") == 24


def test_of_several_queues_none_waits_for_another_to_be_empty(
    url: str, receiver: Callable[..., Inbox]
) -> None:
    send(url, "long", *range(200))
    send(url, "short", 1_000)
    worker = receiver("long", "short", prefetch=10)
    while 1_000 not in worker.receive(len(worker.messages) + 1):
        for message in worker.messages:
            if not message.acknowledged:
                message.ack()
    assert len(worker.messages) < 200


def test_what_is_urgent_comes_first(url: str, receiver: Callable[..., Inbox]) -> None:
    # Kombu's Redis: a small number is urgent.
    send(url, "q", *range(3), priority=9)
    send(url, "q", *range(10, 13), priority=0)
    assert receiver("q").receive(6) == [10, 11, 12, 0, 1, 2]


def test_a_rejected_message_is_dropped_and_a_requeued_one_comes_back_marked(
    url: str, redis: Redis, receiver: Callable[..., Inbox]
) -> None:
    send(url, "q", 1, 2)
    worker = receiver("q")
    worker.receive(2)
    worker.messages[0].reject()
    worker.messages[1].requeue()
    assert worker.receive(3) == [1, 2, 2]
    assert worker.messages[2].delivery_info["redelivered"] is True
    worker.messages[2].ack()
    assert redis.hlen("unacked") == 0


def test_closing_puts_back_what_is_not_acknowledged(
    url: str, redis: Redis, receiver: Callable[..., Inbox]
) -> None:
    send(url, "q", *range(5))
    worker = receiver("q")
    worker.receive(5)
    worker.messages[0].ack()
    worker.channel.close()
    assert (redis.llen("q"), redis.hlen("unacked")) == (4, 0)
    assert sorted(receiver("q").receive(4)) == [1, 2, 3, 4]


KILLED = """
import os, sys
sys.path.insert(0, ".")
from kombu import Connection, Consumer, Queue
from cos_events.redis_transport import NAME
got = []
def take(message):
    got.append(message)
    if len(got) == 20:
        os._exit(9)
with Connection(sys.argv[1], transport=NAME) as connection, connection.channel() as channel:
    with Consumer(channel, [Queue("q")], on_message=take):
        while True:
            connection.drain_events()
"""


@pytest.mark.parametrize("successor", [FAST, STOCK], ids=["this transport", "Kombu's own"])
def test_what_a_killed_worker_had_comes_again_to_either_transport(
    url: str, redis: Redis, receiver: Callable[..., Inbox], successor: dict[str, str]
) -> None:
    send(url, "q", *range(40))
    killed = subprocess.run([sys.executable, "-c", KILLED, url], check=False, timeout=240)
    assert killed.returncode == 9
    assert (redis.llen("q"), redis.hlen("unacked")) == (0, 40)
    options: dict[str, Any] = {"transport_options": VISIBLE_AT_ONCE, **successor}
    if not successor:
        options["transport"] = None
    worker = receiver("q", **options)
    assert sorted(worker.receive(40)) == list(range(40))
    assert all(message.delivery_info["redelivered"] for message in worker.messages)


GARBAGE = [b"\xff\xfe", b"not json", b"[]", b'{"body": 1}', b"[" * 3_000, b'"a","",b"']


def test_garbage_in_a_queue_arrives_as_its_bytes(
    url: str, redis: Redis, receiver: Callable[..., Inbox]
) -> None:
    send(url, "q", 1)
    for each in GARBAGE:
        redis.lpush("q", each)
    send(url, "q", 2)
    worker = receiver("q")
    deadline = time.monotonic() + 60
    while len(worker.messages) < len(GARBAGE) + 2 and time.monotonic() < deadline:
        worker.receive(len(worker.messages[:1]))
        worker.connection.drain_events(timeout=1) if len(worker.messages) < 8 else None
    assert [bytes(each.body) for each in worker.messages[1:-1]] == GARBAGE
    worker.channel.close()
    assert (redis.llen("q"), redis.hlen("unacked")) == (len(GARBAGE) + 2, 0)


def test_garbage_that_a_killed_worker_had_noted_comes_again(
    redis: Redis, receiver: Callable[..., Inbox]
) -> None:
    for number, each in enumerate(GARBAGE):
        redis.hset("unacked", f"t.{number}", b"[" + each + b',"","q"]')
        redis.zadd("unacked_index", {f"t.{number}": 1})
    worker = receiver("q", transport_options=VISIBLE_AT_ONCE)
    deadline = time.monotonic() + 60
    while len(worker.messages) < len(GARBAGE) and time.monotonic() < deadline:
        try:
            worker.connection.drain_events(timeout=1)
        except TimeoutError:
            continue
    assert sorted(bytes(each.body) for each in worker.messages) == sorted(GARBAGE)


def fire_until_acknowledged(hub: Hub, redis: Redis) -> None:
    deadline = time.monotonic() + 60
    while redis.hlen("unacked") and time.monotonic() < deadline:
        time.sleep(GATHER_SECONDS)
        hub.fire_timers()
    assert redis.hlen("unacked") == 0


def test_in_a_workers_loop_acknowledgements_go_together_and_soon(
    url: str, redis: Redis, receiver: Callable[..., Inbox]
) -> None:
    send(url, "q", *range(10))
    worker = receiver("q")
    worker.receive(10)
    hub = Hub()
    worker.channel.connection.register_with_event_loop(worker.connection.connection, hub)
    for message in worker.messages:
        message.ack()
    assert redis.hlen("unacked") == 10
    fire_until_acknowledged(hub, redis)
    hub.close()


def test_acknowledgements_that_redis_refused_are_sent_again(
    url: str, redis: Redis, receiver: Callable[..., Inbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    send(url, "q", *range(3))
    worker, hub = receiver("q"), Hub()
    worker.receive(3)
    worker.channel.connection.register_with_event_loop(worker.connection.connection, hub)
    monkeypatch.setattr("cos_events.redis_unacked.AGAIN_SECONDS", GATHER_SECONDS)
    # As a Redis without its replicas does.
    redis.config_set("min-replicas-to-write", 1)
    try:
        for message in worker.messages:
            message.ack()
        for _ in range(3):
            time.sleep(2 * GATHER_SECONDS)
            hub.fire_timers()
        assert redis.hlen("unacked") == 3
    finally:
        redis.config_set("min-replicas-to-write", 0)
    fire_until_acknowledged(hub, redis)
    hub.close()


def test_in_a_workers_loop_a_fetch_waits_for_some_room_as_long_as_acknowledgements_gather(
    url: str, receiver: Callable[..., Inbox]
) -> None:
    send(url, "q", *range(40))
    worker, hub = receiver("q", prefetch=32), Hub()
    worker.receive(32)
    worker.channel.connection.register_with_event_loop(worker.connection.connection, hub)
    qos, messages = worker.channel.qos, iter(worker.messages)
    next(messages).ack()
    assert not qos.can_consume()
    deadline = time.monotonic() + 60
    while not qos.can_consume() and time.monotonic() < deadline:
        time.sleep(GATHER_SECONDS)
        hub.fire_timers()
    assert qos.can_consume()
    for _ in range(3):
        next(messages).ack()
    assert qos.can_consume()
    hub.close()


def test_messages_that_nobody_acknowledges_are_not_noted(
    url: str, redis: Redis, receiver: Callable[..., Inbox]
) -> None:
    send(url, "q", 1, 2)
    worker = receiver()
    worker.channel.basic_consume("q", True, worker.messages.append, "tag")
    assert worker.receive(2) == [1, 2]
    assert redis.hlen("unacked") == 0


def test_a_tls_server_is_spoken_to_by_tls_and_its_certificate_is_checked() -> None:
    for connection in (
        Connection("rediss://127.0.0.1:1/0", transport=TLS_NAME),
        Connection("rediss-batch://127.0.0.1:1/0"),
    ):
        assert isinstance(connection.transport, redis_transport.Transport)
        assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    chosen = Connection("rediss://127.0.0.1:1/0?ssl_cert_reqs=optional", transport=TLS_NAME)
    assert chosen.transport.client.ssl == {"ssl_cert_reqs": ssl.CERT_OPTIONAL}


def worker_of(app: Celery) -> Celery:
    """The application as a worker has it."""
    _choose_transport(app)
    return app


def test_sentinel_is_refused_with_what_to_do_instead() -> None:
    options = {"master_name": "main"}
    connection = Connection("redis://127.0.0.1:1/0", transport=NAME, transport_options=options)
    with pytest.raises(KombuError, match="use sentinel://"):
        connection.transport  # noqa: B018 - made when it is asked for


def test_cluster_is_refused_with_what_to_do_instead(open_folder: Path) -> None:
    settings = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    server = EmbeddedValkey(open_folder / "valkey", "secret", settings=settings)
    server.start()
    try:
        with (
            Connection(server.url, transport=NAME) as connection,
            pytest.raises(KombuError, match="without cluster mode"),
        ):
            connection.channel()
    finally:
        server.stop()


def test_a_user_of_redis_who_may_not_ask_for_its_mode_is_let_in(url: str) -> None:
    with Redis.from_url(url) as client:
        client.acl_setuser(
            "plain",
            enabled=True,
            passwords=["+x"],
            keys=["*"],
            channels=["*"],
            categories=["+@all"],
            commands=["-info"],
        )
        try:
            at = url.rpartition("@")[2]
            with (
                Connection(f"redis://plain:x@{at}", transport=NAME) as connection,
                connection.channel() as channel,
            ):
                channel.queue_declare("one")
        finally:
            client.acl_deluser("plain")


def test_any_celery_application_may_use_it_by_its_scheme(url: str) -> None:
    app = Celery("other", broker=url.replace("redis://", "redis-batch://"), set_as_current=False)
    with app.connection_for_write() as connection:
        connection.connect()
        assert isinstance(connection.transport, redis_transport.Transport)


def test_workers_and_the_bus_use_it_unless_the_application_says_otherwise(
    environment: Callable[..., None], url: str
) -> None:
    plain = install(Celery("plain", broker=url, set_as_current=False))
    assert plain.connection_for_write().transport_cls == "redis"
    assert broker.connect().transport_cls == NAME
    assert worker_of(plain).connection_for_read().transport_cls == NAME
    tls = install(Celery("tls", broker="rediss://127.0.0.1:1/0", set_as_current=False))
    assert worker_of(tls).connection_for_read().transport_cls == TLS_NAME
    assert broker.connect().transport_cls == TLS_NAME
    own = install(Celery("own", broker=url, set_as_current=False))
    own.conf.broker_transport = "redis"
    assert worker_of(own).connection_for_read().transport_cls == "redis"
    assert broker.connect().transport_cls == "redis"
