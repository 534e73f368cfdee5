"""Listening: an endless iterator that reconnects, and says what may have been missed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from datetime import UTC, datetime
from typing import Any

from redis import RedisError
from redis.asyncio.client import PubSub as AsyncPubSub
from redis.backoff import EqualJitterBackoff
from redis.client import PubSub

from cos_events.envelope import format_timestamp
from cos_events.error_text import one_line
from cos_events.pubsub.clients import make_async_client, make_client
from cos_events.pubsub.messages import ReceivedMessage, check_channel, decode
from cos_events.settings import get_settings

logger = logging.getLogger(__name__)

_BACKOFF = EqualJitterBackoff(base=0.1, cap=5.0)
_MOST_DOUBLINGS = 10

_CONNECTION: dict[str, Any] = {
    "max_connections": 1,
    # A silent second try, or a silent reconnection, would hide a gap.
    "patient": False,
    "health_check_interval": 0,
    # redis-py would stumble over bytes that are not text.
    "decode_responses": False,
}


class _Feed:
    """One iterator's connections: when they last gave a sign of life, and how often they failed."""

    def __init__(self, channel: str) -> None:
        settings = get_settings()
        self.channel = channel
        self.subscribe = "psubscribe" if "*" in channel else "subscribe"
        self.answer_within = settings.wire_timeout
        self.silence = settings.redis_health_check_interval or None
        self._heard = datetime.now(UTC)
        self._failures = 0

    def subscribed(self, confirmation: object, then: Callable[[], object] | None) -> None:
        self.answered(confirmation)
        if self._failures:
            logger.warning(
                "the live feed of %s is back; what was published between %s and %s may be missed",
                self.channel,
                format_timestamp(self._heard),
                format_timestamp(datetime.now(UTC)),
            )
        self._failures = 0
        self._heard = datetime.now(UTC)
        if then is not None:
            then()

    def received(self, message: Any) -> ReceivedMessage | None:
        self.answered(message)
        self._heard = datetime.now(UTC)
        return decode(self.channel, message)

    def answered(self, message: object) -> None:
        if message is None:
            raise TimeoutError(f"no answer within {self.answer_within:g} s")

    def lost(self, error: Exception) -> float:
        """Returns the seconds to wait before the next attempt."""
        if not self._failures:
            logger.warning(
                "the live feed of %s is down: %s; what is published from %s on may be missed",
                self.channel,
                one_line(error),
                format_timestamp(self._heard),
            )
        self._failures = min(self._failures + 1, _MOST_DOUBLINGS)
        return _BACKOFF.compute(self._failures)


def subscribe_to_channel(
    channel: str, *, on_subscribed: Callable[[], object] | None = None
) -> AsyncGenerator[ReceivedMessage]:
    """Listen to a channel, or to all whose name matches a pattern such as `mem0.recorded.*`.

    Subscribes when the iteration begins, on its own connection. While Redis is down it waits and
    reconnects, at most 5 s apart; it does not raise. A connection that was silent for
    `REDIS_HEALTH_CHECK_INTERVAL` seconds is checked. The log says when the feed was down, and
    between which times messages may be missed. A message that is not JSON is logged, counted
    (`skipped_messages`) and skipped.

    The iterator ends, and its connection with it, when its task is cancelled or by `aclose()`;
    so a timeout around one step ends it too.

    Args:
        channel: the name; a pattern if there is a `*` in it.
        on_subscribed: called each time that Redis has confirmed the subscription: what is
            published from then on is seen.

    Raises:
        InvalidPayload: a ValueError: the channel's name is bad; says why.
    """
    check_channel(channel)
    return _listen(_Feed(channel), on_subscribed)


async def _listen(
    feed: _Feed, on_subscribed: Callable[[], object] | None
) -> AsyncGenerator[ReceivedMessage]:
    while True:
        try:
            async with make_async_client(**_CONNECTION) as client, client.pubsub() as pubsub:
                await _cancellable(getattr(pubsub, feed.subscribe)(feed.channel))
                confirmation = await _cancellable(pubsub.get_message(timeout=feed.answer_within))
                feed.subscribed(confirmation, on_subscribed)
                while True:
                    if received := feed.received(await _cancellable(_next(pubsub, feed))):
                        yield received
        except (RedisError, OSError) as error:
            delay = feed.lost(error)
        await asyncio.sleep(delay)


async def _cancellable(call: Awaitable[Any]) -> Any:
    # redis-py sends within asyncio.wait_for. In Python 3.11 that loses a cancellation which comes
    # just as it ends, and we would listen on.
    task: Any = asyncio.current_task()
    before = task.cancelling()
    try:
        return await call
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


async def _next(pubsub: AsyncPubSub, feed: _Feed) -> object:
    if message := await pubsub.get_message(timeout=feed.silence):
        return message
    await pubsub.ping()
    return await pubsub.get_message(timeout=feed.answer_within)


def subscribe_to_channel_sync(
    channel: str, *, on_subscribed: Callable[[], object] | None = None
) -> Generator[ReceivedMessage]:
    """As `subscribe_to_channel`, for its own thread: each step blocks until a message comes.

    It ends with `close()`, or when the loop over it is left.
    """
    check_channel(channel)
    return _listen_sync(_Feed(channel), on_subscribed)


def _listen_sync(
    feed: _Feed, on_subscribed: Callable[[], object] | None
) -> Generator[ReceivedMessage]:
    while True:
        try:
            with make_client(**_CONNECTION) as client, client.pubsub() as pubsub:
                getattr(pubsub, feed.subscribe)(feed.channel)
                feed.subscribed(pubsub.get_message(timeout=feed.answer_within), on_subscribed)
                while True:
                    if received := feed.received(_next_sync(pubsub, feed)):
                        yield received
        except (RedisError, OSError) as error:
            delay = feed.lost(error)
        time.sleep(delay)


def _next_sync(pubsub: PubSub, feed: _Feed) -> object:
    # None waits forever, which its annotation omits.
    if message := pubsub.get_message(timeout=feed.silence):  # type: ignore[arg-type]
        return message
    pubsub.ping()
    return pubsub.get_message(timeout=feed.answer_within)
