"""FastStream: a consumer group on a Redis stream, or a durable RabbitMQ queue."""

from __future__ import annotations

from typing import Any

from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.redis import RedisBroker, StreamSub

from benchmarks.peers import work

QUEUE = "peers.faststream"

broker: Any
if work.ON_RABBITMQ:
    broker = RabbitBroker(work.BROKER_URL, default_channel=Channel(prefetch_count=100))
    source = {"queue": RabbitQueue(QUEUE, durable=True)}
    to: dict[str, Any] = {"queue": QUEUE, "persist": True}
else:
    broker = RedisBroker(work.BROKER_URL)
    source = {"stream": StreamSub(QUEUE, group="peers", consumer="one", max_records=100)}
    to = {"stream": QUEUE}

app = FastStream(broker)


@broker.subscriber(**source)
async def handle(event: dict[str, Any]) -> None:
    work.handled(event)


async def prepare() -> None:
    await broker.connect()


async def after_commit(event: dict[str, Any]) -> None:
    await broker.publish(event, **to)
