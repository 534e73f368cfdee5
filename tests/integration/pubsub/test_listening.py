"""A listener: it reconnects, says what may be missed, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from cos_events import publish_message, pubsub, subscribe_to_channel
from cos_events.embedded import EmbeddedValkey
from cos_events.pubsub import redis_breaker

if TYPE_CHECKING:
    from conftest import Listener

NAME = "mem0.recorded.cc"


def test_a_listener_reconnects_by_itself_and_says_what_may_be_missed(
    own: EmbeddedValkey,
    listen: Callable[..., Listener],
    caplog: pytest.LogCaptureFixture,
    eventually: Callable[..., None],
) -> None:
    listener = listen(NAME)
    assert pubsub.publish_message_sync(NAME, "1")
    eventually(lambda: listener.contents() == [1])
    own.stop()
    eventually(lambda: caplog.messages)
    own.start()
    eventually(lambda: listener.subscriptions == 2)
    assert pubsub.publish_message_sync(NAME, '"the end"')
    listener.join()
    assert listener.contents() == [1, "the end"]
    cut, back = caplog.messages
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
    assert_matches(
        rf"the live feed of {NAME} is down: .+; what is published from {moment} on may be missed",
        cut,
    )
    assert_matches(
        rf"the live feed of {NAME} is back; "
        rf"what was published between {moment} and {moment} may be missed",
        back,
    )
    since = cut.split("from ")[1].split(" ")[0]
    assert f"between {since} and" in back


def assert_matches(pattern: str, text: str) -> None:
    assert re.fullmatch(pattern, text)


def test_a_listener_may_begin_while_the_server_is_away(
    listen: Callable[..., Listener],
    own: EmbeddedValkey,
    caplog: pytest.LogCaptureFixture,
    eventually: Callable[..., None],
) -> None:
    own.stop()
    listener = listen(NAME, confirmed=False)
    eventually(lambda: len(caplog.messages) == 1)
    own.start()
    eventually(lambda: listener.subscriptions == 1)
    assert pubsub.publish_message_sync(NAME, '"the end"')
    listener.join()
    down, back = caplog.messages
    assert "is down" in down
    assert "is back" in back


def test_a_silent_connection_is_checked_and_a_frozen_server_noticed(
    frozen: Callable[[EmbeddedValkey], AbstractContextManager[None]],
    own: EmbeddedValkey,
    environment: Callable[..., None],
    listen: Callable[..., Listener],
    caplog: pytest.LogCaptureFixture,
    eventually: Callable[..., None],
) -> None:
    environment(REDIS_HEALTH_CHECK_INTERVAL="0.05")
    listener = listen(NAME)
    with Redis.from_url(own.url) as redis:
        eventually(lambda: redis.info("commandstats").get("cmdstat_ping", {}).get("calls", 0) > 3)
    assert not caplog.messages
    assert listener.subscriptions == 1
    with frozen(own):
        eventually(lambda: caplog.messages)
    assert "no answer within 0.5 s" in caplog.messages[0]
    eventually(lambda: listener.subscriptions == 2)
    assert pubsub.publish_message_sync(NAME, '"the end"')
    listener.join()


def test_without_health_checks_a_listener_waits_for_ever(
    redis: Redis, environment: Callable[..., None], listen: Callable[..., Listener]
) -> None:
    environment(REDIS_HEALTH_CHECK_INTERVAL="0")
    listener = listen(NAME)
    assert pubsub.publish_message_sync(NAME, '"the end"')
    listener.join()


def test_what_is_not_json_is_skipped(
    redis: Redis, listen: Callable[..., Listener], unique: Callable[[str], str]
) -> None:
    name = unique("skipping")
    listener = listen(name)
    for raw in (b"\xff\xfe", b"", b"plain", b"NaN", b"[1]", b'"the end"'):
        redis.publish(name, raw)
    listener.join()
    assert listener.contents() == [[1], "the end"]
    assert pubsub.skipped_messages()[name] == 4


def test_a_listener_that_ends_leaves_no_connection(
    clients: Callable[[], set[str]], redis: Redis, eventually: Callable[..., None]
) -> None:
    before = clients()

    async def run() -> None:
        for end in (cancelled, closed, left, timed_out):
            ready = asyncio.Event()
            feed = subscribe_to_channel(NAME, on_subscribed=ready.set)
            await end(feed, ready)
            assert [each async for each in feed] == [], "it has ended"
        await pubsub.close_redis_client()
        eventually(lambda: clients() <= before)

    async def cancelled(feed: Any, ready: asyncio.Event) -> None:
        task = asyncio.create_task(anext(feed))
        await ready.wait()
        assert redis.pubsub_numsub(NAME) == [(NAME, 1)]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def closed(feed: Any, ready: asyncio.Event) -> None:
        task = asyncio.create_task(anext(feed))
        await ready.wait()
        await publish_message(NAME, {})
        await task
        await feed.aclose()

    async def left(feed: Any, ready: asyncio.Event) -> None:
        async def one() -> None:
            async with aclosing(feed):
                async for _ in feed:
                    break

        task = asyncio.create_task(one())
        await ready.wait()
        await publish_message(NAME, {})
        await task

    async def timed_out(feed: Any, ready: asyncio.Event) -> None:
        task = asyncio.create_task(anext(feed))
        await ready.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, 0.01)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(run())
        gc.collect()


def test_a_listener_can_be_cancelled_while_the_server_is_away(
    own: EmbeddedValkey, caplog: pytest.LogCaptureFixture
) -> None:
    own.stop()

    async def run() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(subscribe_to_channel(NAME)), 0.5)

    asyncio.run(run())
    assert len(caplog.messages) == 1


@pytest.mark.usefixtures("redis")
def test_a_listener_can_be_cancelled_at_each_turn_of_its_start() -> None:
    async def listen() -> None:
        async for _ in subscribe_to_channel(NAME):
            pass

    async def run() -> None:
        for turns in range(100):
            task = asyncio.create_task(listen())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task], timeout=10)
            assert task.cancelled(), f"after {turns} turns of the loop it listens on"

    asyncio.run(run())


def test_a_listener_takes_no_connection_of_the_pool(
    redis: Redis, environment: Callable[..., None], listen: Callable[..., Listener]
) -> None:
    environment(REDIS_MAX_CONNECTIONS="1")
    listeners = [listen(NAME) for _ in range(3)]
    assert pubsub.publish_message_sync(NAME, '"the end"')
    for each in listeners:
        each.join()


def test_the_log_names_no_password(
    listen: Callable[..., Listener],
    own: EmbeddedValkey,
    caplog: pytest.LogCaptureFixture,
    eventually: Callable[..., None],
) -> None:
    caplog.set_level(logging.DEBUG)
    own.stop()
    listener = listen(NAME, confirmed=False)
    assert pubsub.publish_message_sync(NAME, {}) is False
    own.start()
    eventually(lambda: listener.subscriptions)
    redis_breaker()._opened_at = None
    assert pubsub.publish_message_sync(NAME, '"the end"')
    listener.join()
    assert "secret" not in caplog.text
