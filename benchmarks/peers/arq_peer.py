"""arq: a sorted set that its worker polls."""

from __future__ import annotations

from typing import Any

from arq import create_pool, run_worker
from arq.connections import RedisSettings

from benchmarks.peers import work

settings = RedisSettings.from_dsn(work.BROKER_URL)
_pool: dict[str, Any] = {}


async def handle(_context: dict[str, Any], event: dict[str, Any]) -> None:
    work.handled(event)


class WorkerSettings:
    functions = (handle,)
    redis_settings = settings
    # Its default of half a second would be all that is measured.
    poll_delay = 0.01
    max_jobs = 10
    keep_result = 0


async def prepare() -> None:
    _pool["redis"] = await create_pool(settings)


async def after_commit(event: dict[str, Any]) -> None:
    await _pool["redis"].enqueue_job("handle", event)


if __name__ == "__main__":
    run_worker(WorkerSettings)
