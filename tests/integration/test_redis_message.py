"""What the bus writes into Redis itself is what Kombu would have written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue
from redis import Redis

from cos_events.embedded import EmbeddedValkey
from cos_events.redis_message import RedisMessage

BODY, HEADERS = '{"text": "Grüße \\u0000 \U0001f600"}', {"traceparent": "00-1-2-01", "again": True}


@pytest.fixture
def connection(valkey: EmbeddedValkey) -> Iterator[Any]:
    """By Kombu's own transport."""
    with Connection(valkey.url) as made:
        yield made


@pytest.fixture
def client(valkey: EmbeddedValkey) -> Iterator[Redis]:
    with Redis.from_url(valkey.url) as made:
        yield made


def without_tag(raw: str | bytes) -> dict[str, Any]:
    wrapper: dict[str, Any] = json.loads(raw)
    assert len(wrapper["properties"].pop("delivery_tag")) == 36
    return wrapper


def publish(connection: Any, **where: Any) -> None:
    connection.Producer().publish(
        BODY,
        headers=HEADERS,
        content_type="application/json",
        content_encoding="utf-8",
        **where,
    )


def test_a_message_for_a_queue_is_as_kombus_producer_writes_it(
    connection: Any, client: Redis
) -> None:
    publish(connection, exchange="", routing_key="work")
    ours = RedisMessage(BODY.encode(), HEADERS).to("work")
    assert without_tag(ours) == without_tag(client.lrange("work", 0, -1)[0])


def test_a_message_for_a_fanout_exchange_is_as_kombus_producer_writes_it(
    connection: Any, client: Redis
) -> None:
    exchange = Exchange("mem0.recorded.cc", type="fanout")
    channel = connection.default_channel
    with client.pubsub() as listener:
        listener.subscribe(f"{channel.keyprefix_fanout}{exchange.name}")
        assert listener.get_message(timeout=60)
        publish(connection, exchange=exchange, declare=[exchange])
        heard = listener.get_message(timeout=60)
    ours = RedisMessage(BODY.encode(), HEADERS).to("", exchange.name)
    assert heard
    assert without_tag(ours) == without_tag(heard["data"])


def test_kombu_reads_what_the_bus_writes(connection: Any, client: Redis) -> None:
    message = RedisMessage(BODY.encode(), HEADERS)
    client.lpush("work", message.to("work"), message.to("work"))
    received: list[Any] = []
    queue = Queue("work", Exchange(""), "work")
    with connection.Consumer(queue, on_message=received.append, accept=["json"]):
        while len(received) < 2:
            connection.drain_events(timeout=60)
    assert len({each.delivery_tag for each in received}) == 2
    for each in received:
        assert (each.payload, each.headers) == (json.loads(BODY), HEADERS)
        each.ack()
