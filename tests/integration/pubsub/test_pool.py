"""Connections: how many, whose, and what becomes of them."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import time
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from cos_events import publish_message, pubsub
from cos_events.pubsub import redis_breaker

WIRE_TIMEOUT = 0.5

NAME = "mem0.recorded.cc"


def test_a_hundred_callers_share_no_more_connections_than_allowed(
    clients: Callable[[], set[str]], redis: Redis, environment: Callable[..., None]
) -> None:
    environment(REDIS_MAX_CONNECTIONS="5", COS_EVENTS_WIRE_TIMEOUT="10")
    before = clients()

    async def run() -> None:
        most = 0
        for _ in range(5):
            assert all(await asyncio.gather(*(publish_message(NAME, {}) for _ in range(100))))
            most = max(most, len(clients() - before))
        assert most == 5

    asyncio.run(run())
    with ThreadPoolExecutor(50) as threads:
        assert all(threads.map(lambda _: pubsub.publish_message_sync(NAME, {}), range(200)))
        assert 1 <= len(clients() - before) <= 5


def test_twenty_connections_are_the_most_by_default(redis: Redis) -> None:
    async def run() -> int:
        client = pubsub.get_redis_client()
        await asyncio.gather(*(client.blpop("no such list", timeout=0.1) for _ in range(20)))
        return len(client.connection_pool._available_connections)

    assert asyncio.run(run()) == 20
    assert pubsub.get_redis_client_sync().connection_pool.max_connections == 20


def test_at_the_limit_a_caller_waits_for_a_connection(
    redis: Redis, environment: Callable[..., None]
) -> None:
    environment(REDIS_MAX_CONNECTIONS="1", COS_EVENTS_WIRE_TIMEOUT="10")

    async def run() -> None:
        pool = pubsub.get_redis_client().connection_pool
        held = await pool.get_connection()
        waiting = asyncio.create_task(publish_message(NAME, {}))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        await pool.release(held)
        assert await waiting

    asyncio.run(run())


def test_at_the_limit_the_wait_is_bounded(
    redis: Redis, environment: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    environment(REDIS_MAX_CONNECTIONS="1")

    async def run() -> float:
        client = pubsub.get_redis_client()
        held = await client.connection_pool.get_connection()
        started = time.monotonic()
        assert await publish_message(NAME, {}) is False
        took = time.monotonic() - started
        with pytest.raises(RedisConnectionError, match="No connection available"):
            await client.ping()
        await client.connection_pool.release(held)
        return took

    assert WIRE_TIMEOUT * 0.9 <= asyncio.run(run()) < WIRE_TIMEOUT + 1.0
    pool = pubsub.get_redis_client_sync().connection_pool
    held = pool.get_connection()
    redis_breaker()._opened_at = None
    started = time.monotonic()
    assert pubsub.publish_message_sync(NAME, {}) is False
    assert WIRE_TIMEOUT * 0.9 <= time.monotonic() - started < WIRE_TIMEOUT + 1.0
    pool.release(held)
    assert caplog.messages == ["the live feed's Redis is down: No connection available."] * 2


def test_each_event_loop_has_a_client_and_threads_have_one(redis: Redis) -> None:
    async def client() -> Any:
        assert await publish_message(NAME, {})
        assert pubsub.get_redis_client() is pubsub.get_redis_client()
        return pubsub.get_redis_client()

    with ThreadPoolExecutor(3) as threads:
        made = list(threads.map(lambda _: asyncio.run(client()), range(3)))
        of_threads = set(threads.map(lambda _: pubsub.get_redis_client_sync(), range(3)))
    assert len({id(each) for each in made}) == 3
    assert of_threads == {pubsub.get_redis_client_sync()}


def test_a_client_is_closed_with_its_event_loop_without_a_warning(
    clients: Callable[[], set[str]], redis: Redis, eventually: Callable[..., None]
) -> None:
    before = clients()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            asyncio.run(publish_message(NAME, {}))
            gc.collect()
    assert pubsub.clients._clients.get().by_loop == {}
    eventually(lambda: clients() <= before)


def test_a_closed_client_is_followed_by_a_new_one(
    clients: Callable[[], set[str]], redis: Redis, eventually: Callable[..., None]
) -> None:
    before = clients()

    async def run() -> None:
        await pubsub.close_redis_client()
        first = pubsub.get_redis_client()
        assert await publish_message(NAME, {})
        await pubsub.close_redis_client()
        eventually(lambda: clients() <= before)
        assert await publish_message(NAME, {})
        assert pubsub.get_redis_client() is not first

    asyncio.run(run())
    first = pubsub.get_redis_client_sync()
    assert pubsub.publish_message_sync(NAME, {})
    pubsub.close_redis_client_sync()
    pubsub.close_redis_client_sync()
    eventually(lambda: clients() <= before)
    assert pubsub.get_redis_client_sync() is not first


def test_a_loop_that_ended_without_closing_its_client_is_forgotten(redis: Redis) -> None:
    async def use() -> None:
        pubsub.get_redis_client()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    loop.close()
    assert list(pubsub.clients._clients.get().by_loop) == [loop]
    asyncio.run(use())
    assert pubsub.clients._clients.get().by_loop == {}


@pytest.mark.parametrize("mode", ["publish", "listen", "sync"])
def test_a_program_ends_without_warnings(mode: str, redis: Redis) -> None:
    program = """
        import asyncio, sys
        from cos_events.pubsub import *

        async def publish():
            # A machine that is busy is nothing to warn of.
            asyncio.get_running_loop().slow_callback_duration = 60
            assert await publish_message("x", {})

        async def listen():
            asyncio.get_running_loop().slow_callback_duration = 60
            ready = asyncio.Event()
            feed = subscribe_to_channel("x", on_subscribed=ready.set)
            async def one():
                async for _ in feed:
                    return
            task = asyncio.create_task(one())
            await ready.wait()
            await publish()

        if sys.argv[1] == "sync":
            assert publish_message_sync("x", {})
        else:
            asyncio.run(globals()[sys.argv[1]]())
    """
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(program), mode],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_forked_child_publishes_on_connections_of_its_own(
    clients: Callable[[], set[str]], redis: Redis, eventually: Callable[..., None]
) -> None:
    async def parent() -> None:
        assert await publish_message(NAME, {})
        assert pubsub.publish_message_sync(NAME, {})
        assert child_publishes() == 0
        assert await publish_message(NAME, {}), "the child must not have touched this connection"
        assert pubsub.publish_message_sync(NAME, {})

    before = clients()
    asyncio.run(parent())
    pubsub.close_redis_client_sync()
    eventually(lambda: clients() <= before)


def child_publishes() -> int:
    """Fork inside a running loop; the child leaves what it inherited alone, and publishes."""
    inherited = weakref.ref(pubsub.clients._clients.get())
    if not (child := os.fork()):
        failed = 1
        try:
            asyncio._set_running_loop(None)
            gc.collect()
            assert inherited() is not None, "collecting it would touch the parent's sockets"
            assert pubsub.publish_message_sync(NAME, {})
            assert asyncio.run(publish_message(NAME, {}))
            failed = 0
        finally:
            os._exit(failed)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
