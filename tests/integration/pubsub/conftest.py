"""A live feed of each kind, `async` and in threads: what holds for one holds for the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing
from typing import Any

import pytest
from redis import Redis

from cos_events import embedded, publish_message, pubsub, subscribe_to_channel
from cos_events.circuit_breaker import CircuitBreaker
from cos_events.embedded import EmbeddedValkey
from cos_events.process import PerProcess
from cos_events.pubsub import ReceivedMessage, publish

WIRE_TIMEOUT = 0.5

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


@pytest.fixture
def clients(redis: Redis) -> Callable[[], set[str]]:
    """The connections of others that the server has now."""
    me = str(redis.client_id())
    return lambda: {each["id"] for each in redis.client_list() if each["id"] != me}


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
) -> Callable[..., Listener]:
    """Begin to listen to a channel; returns once Redis has confirmed it, unless told otherwise."""

    def begin(channel: str, *, confirmed: bool = True) -> Listener:
        listener = Listener(request.param, channel)
        if confirmed:
            eventually(lambda: listener.subscriptions == 1)
        return listener

    return begin
