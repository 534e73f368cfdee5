"""The live feed's client on a real server: its pool, its publishers, its listeners.

What holds for `async` code holds for threads too: most tests run on both kinds.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, contextmanager, suppress
from typing import Any

import pytest
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from cos_events import Envelope, embedded, publish_message, pubsub, subscribe_to_channel
from cos_events.circuit_breaker import CircuitBreaker
from cos_events.embedded import EmbeddedValkey
from cos_events.process import PerProcess
from cos_events.pubsub import ReceivedMessage, publish, redis_breaker
from cos_events.recording import make_envelope

WIRE_TIMEOUT = 0.5
NAME = "mem0.recorded.cc"

Publish = Callable[..., bool]


@pytest.fixture(autouse=True)
def _own_state(environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No client and no breaker of another test."""
    environment(COS_EVENTS_WIRE_TIMEOUT=str(WIRE_TIMEOUT))
    monkeypatch.setattr(
        publish,
        "_breaker",
        PerProcess(lambda: CircuitBreaker("the live feed's Redis", reset_after=0.2)),
    )
    pubsub.close_redis_client_sync()
    yield
    pubsub.close_redis_client_sync()


@pytest.fixture
def redis(servers: embedded.Servers, environment: Callable[..., None]) -> Iterator[Redis]:
    """`REDIS_URL` is the tests' shared Valkey; this client looks at it from outside."""
    environment(REDIS_URL=servers.redis_url)
    with Redis.from_url(servers.redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def own(valkey: EmbeddedValkey, environment: Callable[..., None]) -> EmbeddedValkey:
    """`REDIS_URL` is a Valkey that the test may stop and freeze."""
    environment(REDIS_URL=valkey.url)
    return valkey


@pytest.fixture(params=["async", "sync"])
def publishing(request: pytest.FixtureRequest) -> Iterator[Publish]:
    """`publish_message` of each kind, as a plain function; its client lasts for the test."""
    if request.param == "sync":
        yield pubsub.publish_message_sync
        return
    with asyncio.Runner() as runner:
        yield lambda *arguments: runner.run(publish_message(*arguments))


@contextmanager
def frozen(server: EmbeddedValkey) -> Iterator[None]:
    """It accepts connections and never answers."""
    assert server.pid
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def clients(redis: Redis) -> set[str]:
    """The connections of others that the server has now."""
    me = str(redis.client_id())
    return {each["id"] for each in redis.client_list() if each["id"] != me}


class Listener:
    """A subscriber of either kind in a thread of its own, which collects what it sees."""

    def __init__(self, kind: str, channel: str) -> None:
        self.seen: list[ReceivedMessage] = []
        self.subscriptions = 0
        self._wanted = 0
        self._channel = channel
        self._enough = threading.Event()
        self._thread = threading.Thread(target=getattr(self, kind), daemon=True)
        self._thread.start()

    def _subscribed(self) -> None:
        self.subscriptions += 1

    def sync(self) -> None:
        feed = pubsub.subscribe_to_channel_sync(self._channel, on_subscribed=self._subscribed)
        with closing(feed):
            for message in feed:
                self.seen.append(message)
                if message.content == "the end":
                    return

    def asynchronous(self) -> None:
        async def listen() -> None:
            feed = subscribe_to_channel(self._channel, on_subscribed=self._subscribed)
            async with aclosing(feed):
                async for message in feed:
                    self.seen.append(message)
                    if message.content == "the end":
                        return

        asyncio.run(listen())

    def contents(self) -> list[Any]:
        return [each.content for each in self.seen]

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture(params=["asynchronous", "sync"])
def listen(
    request: pytest.FixtureRequest, eventually: Callable[..., None]
) -> Callable[[str], Listener]:
    """Begin to listen to a channel; returns once Redis has confirmed it."""

    def begin(channel: str) -> Listener:
        listener = Listener(request.param, channel)
        eventually(lambda: listener.subscriptions == 1)
        return listener

    return begin


# Publishing


def test_a_message_to_nobody_is_published(publishing: Publish, redis: Redis) -> None:
    assert publishing(NAME, {"a": 1}) is True


def test_envelopes_values_and_texts_arrive_in_order(
    publishing: Publish, redis: Redis, listen: Callable[[str], Listener]
) -> None:
    listener = listen(NAME)
    envelope = make_envelope(event_type="event_log", data={"text": "ö"})
    for message in (envelope, {"a": [1, None]}, '{"b":  2.50}', '"the end"'):
        assert publishing(NAME, message)
    listener.join()
    assert listener.contents() == [envelope, {"a": [1, None]}, {"b": 2.5}, "the end"]
    assert isinstance(listener.seen[0].content, Envelope)
    assert [each.data for each in listener.seen[1:3]] == ['{"a":[1,null]}', '{"b":  2.50}']
    assert {each.channel for each in listener.seen} == {NAME}


def test_a_pattern_matches_every_module(
    publishing: Publish, redis: Redis, listen: Callable[[str], Listener]
) -> None:
    listener = listen("mem0.recorded.*")
    for name in ("mem0.recorded.cc", "mem0.other", "mem0.recorded.pem"):
        assert publishing(name, [name])
    assert publishing("mem0.recorded.cc", '"the end"')
    listener.join()
    assert [each.channel for each in listener.seen] == [NAME, "mem0.recorded.pem", NAME]


def test_bad_input_is_a_value_error_and_no_outage(publishing: Publish, redis: Redis) -> None:
    for name, message in [("two words", {}), (NAME, float("nan")), (NAME, "no JSON")]:
        with pytest.raises(ValueError, match="must not hold|cannot publish"):
            publishing(name, message)
    assert redis_breaker().state == "closed"
    assert publishing(NAME, {})


# Outages


def test_a_server_that_is_away_is_false_with_one_line_for_the_outage_and_one_after_it(
    publishing: Publish,
    own: EmbeddedValkey,
    caplog: pytest.LogCaptureFixture,
    eventually: Callable[..., None],
) -> None:
    assert publishing(NAME, {})
    own.stop()
    for _ in range(2):
        assert [publishing(NAME, {}) for _ in range(50)] == [False] * 50
        eventually(lambda: redis_breaker().state == "half_open")
    own.start()
    eventually(lambda: publishing(NAME, {}))
    assert [publishing(NAME, {}) for _ in range(10)] == [True] * 10
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith("the live feed's Redis is down: ")
    assert caplog.messages[1] == "the live feed's Redis is back"
    assert redis_breaker().opened == 1


def test_a_restart_costs_no_message_although_the_pool_is_full_of_dead_connections(
    own: EmbeddedValkey,
) -> None:
    async def run() -> None:
        assert all(await asyncio.gather(*(publish_message(NAME, {}) for _ in range(50))))
        own.stop()
        own.start()
        assert all(await asyncio.gather(*(publish_message(NAME, {}) for _ in range(50))))

    asyncio.run(run())


def test_a_frozen_server_is_false_within_two_timeouts_and_then_at_once(
    publishing: Publish, own: EmbeddedValkey, eventually: Callable[..., None]
) -> None:
    assert publishing(NAME, {})
    with frozen(own):
        started = time.monotonic()
        assert publishing(NAME, {}) is False
        assert time.monotonic() - started < 2 * WIRE_TIMEOUT + 1.0, "each try may take the timeout"
        redis_breaker()._reset_after = 60.0
        started = time.monotonic()
        assert [publishing(NAME, {}) for _ in range(100)] == [False] * 100
        assert time.monotonic() - started < WIRE_TIMEOUT
        redis_breaker()._reset_after = 0.2
    eventually(lambda: publishing(NAME, {}))


def test_with_retry_on_timeout_off_a_frozen_server_gets_one_try(
    publishing: Publish, own: EmbeddedValkey, environment: Callable[..., None]
) -> None:
    environment(REDIS_RETRY_ON_TIMEOUT="false")
    assert publishing(NAME, {})
    with frozen(own):
        started = time.monotonic()
        assert publishing(NAME, {}) is False
        assert time.monotonic() - started < 2 * WIRE_TIMEOUT


def test_while_the_breaker_is_open_no_connection_is_made(
    publishing: Publish, environment: Callable[..., None], eventually: Callable[..., None]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address, accepted = listener.getsockname(), []

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    client, (_, port) = listener.accept()
                    client.close()
                    accepted.append(port)

        def connections() -> int:
            # Connections are accepted in order: when this one was, all before it were too.
            with socket.create_connection(address) as last:
                eventually(lambda: last.getsockname()[1] in accepted)
            return len(accepted)

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        environment(REDIS_URL=f"redis://127.0.0.1:{address[1]}/0")
        assert publishing(NAME, {}) is False
        redis_breaker()._reset_after = 3600.0
        before = connections()
        assert before > 1, "it was tried"
        assert not any(publishing(NAME, {}) for _ in range(100))
        assert connections() == before + 1
        assert redis_breaker().state == "open"
        redis_breaker()._reset_after = 0.0
        assert publishing(NAME, {}) is False
        assert connections() > before + 2, "it was probed"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_a_cancelled_call_says_nothing_about_the_server(own: EmbeddedValkey) -> None:
    async def run() -> None:
        assert await publish_message(NAME, {})
        with frozen(own):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(publish_message(NAME, {}), 0.05)
            assert redis_breaker().state == "closed"
        assert await publish_message(NAME, {})

    asyncio.run(run())


# The pool


def test_a_hundred_callers_share_no_more_connections_than_allowed(
    redis: Redis, environment: Callable[..., None]
) -> None:
    environment(REDIS_MAX_CONNECTIONS="5", COS_EVENTS_WIRE_TIMEOUT="10")
    before = clients(redis)

    async def run() -> None:
        most = 0
        for _ in range(5):
            assert all(await asyncio.gather(*(publish_message(NAME, {}) for _ in range(100))))
            most = max(most, len(clients(redis) - before))
        assert most == 5

    asyncio.run(run())
    with ThreadPoolExecutor(50) as threads:
        assert all(threads.map(lambda _: pubsub.publish_message_sync(NAME, {}), range(200)))
        assert 1 <= len(clients(redis) - before) <= 5


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
    redis: Redis, eventually: Callable[..., None]
) -> None:
    before = clients(redis)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            asyncio.run(publish_message(NAME, {}))
            gc.collect()
    assert pubsub.clients._clients.get().by_loop == {}
    eventually(lambda: clients(redis) <= before)


def test_a_closed_client_is_followed_by_a_new_one(
    redis: Redis, eventually: Callable[..., None]
) -> None:
    before = clients(redis)

    async def run() -> None:
        await pubsub.close_redis_client()
        first = pubsub.get_redis_client()
        assert await publish_message(NAME, {})
        await pubsub.close_redis_client()
        eventually(lambda: clients(redis) <= before)
        assert await publish_message(NAME, {})
        assert pubsub.get_redis_client() is not first

    asyncio.run(run())
    first = pubsub.get_redis_client_sync()
    assert pubsub.publish_message_sync(NAME, {})
    pubsub.close_redis_client_sync()
    pubsub.close_redis_client_sync()
    eventually(lambda: clients(redis) <= before)
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
            assert await publish_message("x", {})

        async def listen():
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
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_forked_child_publishes_on_connections_of_its_own(
    redis: Redis, eventually: Callable[..., None]
) -> None:
    async def parent() -> None:
        assert await publish_message(NAME, {})
        assert pubsub.publish_message_sync(NAME, {})
        assert child_publishes() == 0
        assert await publish_message(NAME, {}), "the child must not have touched this connection"
        assert pubsub.publish_message_sync(NAME, {})

    before = clients(redis)
    asyncio.run(parent())
    pubsub.close_redis_client_sync()
    eventually(lambda: clients(redis) <= before)


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


# Listening


def test_a_listener_reconnects_by_itself_and_says_what_may_be_missed(
    own: EmbeddedValkey,
    listen: Callable[[str], Listener],
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
    own: EmbeddedValkey,
    caplog: pytest.LogCaptureFixture,
    eventually: Callable[..., None],
) -> None:
    own.stop()
    listeners = [Listener(kind, NAME) for kind in ("asynchronous", "sync")]
    eventually(lambda: len(caplog.messages) == 2)
    own.start()
    eventually(lambda: all(each.subscriptions == 1 for each in listeners))
    assert pubsub.publish_message_sync(NAME, '"the end"')
    for each in listeners:
        each.join()
    assert all("is down" in each for each in caplog.messages[:2])
    assert all("is back" in each for each in caplog.messages[2:])


def test_a_silent_connection_is_checked_and_a_frozen_server_noticed(
    own: EmbeddedValkey,
    environment: Callable[..., None],
    listen: Callable[[str], Listener],
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
    redis: Redis, environment: Callable[..., None], listen: Callable[[str], Listener]
) -> None:
    environment(REDIS_HEALTH_CHECK_INTERVAL="0")
    listener = listen(NAME)
    assert pubsub.publish_message_sync(NAME, '"the end"')
    listener.join()


def test_what_is_not_json_is_skipped(
    redis: Redis, listen: Callable[[str], Listener], unique: Callable[[str], str]
) -> None:
    name = unique("skipping")
    listener = listen(name)
    for raw in (b"\xff\xfe", b"", b"plain", b"NaN", b"[1]", b'"the end"'):
        redis.publish(name, raw)
    listener.join()
    assert listener.contents() == [[1], "the end"]
    assert pubsub.skipped_messages()[name] == 4


def test_a_listener_that_ends_leaves_no_connection(
    redis: Redis, eventually: Callable[..., None]
) -> None:
    before = clients(redis)

    async def run() -> None:
        for end in (cancelled, closed, left, timed_out):
            ready = asyncio.Event()
            feed = subscribe_to_channel(NAME, on_subscribed=ready.set)
            await end(feed, ready)
            assert [each async for each in feed] == [], "it has ended"
        await pubsub.close_redis_client()
        eventually(lambda: clients(redis) <= before)

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


def test_a_listener_takes_no_connection_of_the_pool(
    redis: Redis, environment: Callable[..., None], listen: Callable[[str], Listener]
) -> None:
    environment(REDIS_MAX_CONNECTIONS="1")
    listeners = [listen(NAME) for _ in range(3)]
    assert pubsub.publish_message_sync(NAME, '"the end"')
    for each in listeners:
        each.join()


def test_the_log_names_no_password(
    own: EmbeddedValkey, caplog: pytest.LogCaptureFixture, eventually: Callable[..., None]
) -> None:
    caplog.set_level(logging.DEBUG)
    own.stop()
    listener = Listener("sync", NAME)
    assert pubsub.publish_message_sync(NAME, {}) is False
    own.start()
    eventually(lambda: listener.subscriptions)
    redis_breaker()._opened_at = None
    assert pubsub.publish_message_sync(NAME, '"the end"')
    listener.join()
    assert "secret" not in caplog.text
