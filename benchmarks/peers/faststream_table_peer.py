"""faststream-outbox without a broker: the handler takes the rows themselves."""

from __future__ import annotations

from typing import Any

from faststream import FastStream
from faststream_outbox import OutboxBroker, make_outbox_table
from sqlalchemy import MetaData, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from benchmarks.peers import work

metadata = MetaData()
table = make_outbox_table(metadata, table_name="peers_faststream_table")
outbox = OutboxBroker(create_async_engine(work.ASYNC_DATABASE_URL), outbox_table=table)
app = FastStream(outbox)


@outbox.subscriber("orders", max_workers=4, fetch_batch_size=100, terminal_flush_batch_size=100)
async def handle(event: dict[str, Any]) -> None:
    work.handled(event)


def prepare() -> None:
    metadata.create_all(create_engine(work.DATABASE_URL))


async def in_transaction(session: AsyncSession, event: dict[str, Any]) -> None:
    await outbox.publish(event, queue="orders", session=session)
