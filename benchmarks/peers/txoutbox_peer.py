"""txoutbox: a row in the transaction; its relay pushes to the queue of the raw peer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aio_pika
import asyncpg
import redis.asyncio
from sqlalchemy.ext.asyncio import AsyncSession
from txoutbox import OutboxMessage, Relay
from txoutbox.adapters.postgres import PostgresStorage

from benchmarks.peers import work
from benchmarks.peers.raw_peer import QUEUE

_storage: dict[str, PostgresStorage] = {}


async def prepare() -> None:
    # Events without a key: their order is not asked for, as with the others.
    pool = await asyncpg.create_pool(work.PLAIN_DATABASE_URL)
    _storage["orders"] = PostgresStorage(
        pool, table="peers_txoutbox", strict_ordering=False, notify_channel="peers_txoutbox"
    )
    await _storage["orders"].create_schema()


async def in_transaction(session: AsyncSession, event: dict[str, Any]) -> None:
    connection = await (await session.connection()).get_raw_connection()
    await _storage["orders"].insert(connection.driver_connection, "orders", event)


async def relay() -> None:
    """Push until terminated."""
    await prepare()
    if work.ON_RABBITMQ:
        channel = await (await aio_pika.connect_robust(work.BROKER_URL)).channel()
        await channel.declare_queue(QUEUE)

        async def publish(message: OutboxMessage) -> None:
            await channel.default_exchange.publish(aio_pika.Message(message.payload), QUEUE)
    else:
        client = redis.asyncio.Redis.from_url(work.BROKER_URL)

        async def publish(message: OutboxMessage) -> None:
            await client.lpush(QUEUE, json.dumps(message.json()))

    outbox = _storage["orders"]
    relaying = Relay(outbox, publish)
    await outbox.listen(relaying.wake)
    await relaying.run(handle_signals=True)


if __name__ == "__main__":
    asyncio.run(relay())
