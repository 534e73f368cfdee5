"""taskiq: a Redis stream, or RabbitMQ through aio-pika; both acknowledge."""

from __future__ import annotations

from typing import Any

from taskiq_aio_pika import AioPikaBroker
from taskiq_redis import RedisStreamBroker

from benchmarks.peers import work

broker: Any = (
    AioPikaBroker(work.BROKER_URL, qos=100)
    if work.ON_RABBITMQ
    else RedisStreamBroker(work.BROKER_URL)
)


@broker.task(task_name="peers.handle")
async def handle(event: dict[str, Any]) -> None:
    work.handled(event)


async def prepare() -> None:
    await broker.startup()


async def after_commit(event: dict[str, Any]) -> None:
    await handle.kiq(event)
