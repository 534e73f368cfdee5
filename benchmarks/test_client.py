"""The live feed's client beside redis-py alone.

make test ARGS="benchmarks/test_client.py --benchmark-columns=median,max,rounds"
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.rounds import measure
from cos_events import pubsub
from cos_events.embedded import Servers
from cos_events.settings import get_settings

ROUNDS = 1_000
CALLERS = 100
MESSAGES = 1_000_000
CHANNEL = "mem0.recorded.bench"
MESSAGE = {"event_type": "event_log", "data": {"text": "x" * 200}}
RAW = json.dumps(MESSAGE)

Note = Callable[[str, str, list[float]], None]


@pytest.fixture
def url(private: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The client's settings point at the private Valkey."""
    monkeypatch.setenv("REDIS_URL", private.redis_url)
    get_settings.cache_clear()
    yield private.redis_url
    pubsub.close_redis_client_sync()
    get_settings.cache_clear()


@pytest.mark.benchmark(group="publish, sync")
def test_publish_sync(benchmark: BenchmarkFixture, url: str, note: Note) -> None:
    values = measure(benchmark, ROUNDS, lambda: pubsub.publish_message_sync(CHANNEL, MESSAGE))
    note("publish_message_sync", "ms", values)


@pytest.mark.benchmark(group="publish, sync")
def test_publish_sync_floor(benchmark: BenchmarkFixture, url: str, note: Note) -> None:
    with redis.Redis.from_url(url) as client:
        values = measure(benchmark, ROUNDS, lambda: client.publish(CHANNEL, RAW))
    note("  floor: redis.Redis.publish", "ms", values)


@pytest.mark.benchmark(group="publish, async")
def test_publish_async(benchmark: BenchmarkFixture, url: str, note: Note) -> None:
    with asyncio.Runner() as runner:
        values = measure(
            benchmark, ROUNDS, lambda: runner.run(pubsub.publish_message(CHANNEL, MESSAGE))
        )
        runner.run(pubsub.close_redis_client())
    note("publish_message", "ms", values)


@pytest.mark.benchmark(group="publish, async")
def test_publish_async_floor(benchmark: BenchmarkFixture, url: str, note: Note) -> None:
    client = redis.asyncio.Redis.from_url(url)
    with asyncio.Runner() as runner:
        values = measure(benchmark, ROUNDS, lambda: runner.run(_publish(client)))
        runner.run(client.aclose())
    note("  floor: redis.asyncio.Redis.publish", "ms", values)


async def _publish(client: Any) -> None:
    await client.publish(CHANNEL, RAW)


async def _acquire(pool: Any, spent: list[float]) -> None:
    begun = time.perf_counter()
    connection = await pool.get_connection()
    spent.append(1000 * (time.perf_counter() - begun))
    await pool.release(connection)


async def _acquire_at_once(pool: Any, rounds: int) -> list[float]:
    for _ in range(5):
        await asyncio.gather(*(_acquire(pool, []) for _ in range(CALLERS)))
    spent: list[float] = []
    for _ in range(rounds):
        await asyncio.gather(*(_acquire(pool, spent) for _ in range(CALLERS)))
    return spent


def test_acquiring_a_connection_under_a_hundred_callers(url: str, note: Note) -> None:
    async def ours() -> list[float]:
        found = await _acquire_at_once(pubsub.get_redis_client().connection_pool, 100)
        await pubsub.close_redis_client()
        return found

    async def floor() -> list[float]:
        pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=20)
        found = await _acquire_at_once(pool, 100)
        await pool.disconnect()
        return found

    note("a connection of the pool, 100 callers at once", "ms", asyncio.run(ours()))
    note("  floor: redis.asyncio.BlockingConnectionPool", "ms", asyncio.run(floor()))


GROWTH = """
import json, resource, subprocess, sys, os
from cos_events import pubsub
import redis
count, raw, ours = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "ours"
message, client = json.loads(raw), redis.Redis.from_url(os.environ["REDIS_URL"])
publish = pubsub.publish_message_sync if ours else client.publish
body = message if ours else raw
def resident():
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(os.getpid())]))
begun, found = resident(), []
for number in range(count):
    publish("mem0.recorded.bench", body)
    if number % (count // 10) == count // 10 - 1:
        found.append((resident() - begun) / 1024)
print(json.dumps(found))
"""


@pytest.mark.timeout(900)
def test_memory_of_the_client_over_a_million_messages(url: str, note: Note) -> None:
    for whose, what in (
        ("ours", "memory the client takes,"),
        ("raw", "  floor: redis.Redis,"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, str(MESSAGES), RAW, whose],
            env={**os.environ, "REDIS_URL": url},
            capture_output=True,
            text=True,
            check=True,
        )
        note(f"{what} {MESSAGES:,} messages", "MiB", json.loads(done.stdout))
