"""The newest messages of the live feed, kept in a bounded memory."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from redis import RedisError

from cos_events.circuit_breaker import CircuitBreaker, CircuitOpen
from cos_events.envelope import Envelope
from cos_events.pubsub import get_redis_client, subscribe_to_channel
from cos_events.topology import channel_name

MOST_MESSAGES = 1_000
"""Messages that are kept."""

MOST_BYTES = 4 * 2**20
"""Bytes of their JSON that are kept."""

ANSWER_SECONDS = 0.1
"""If Redis does not answer a ping for this long, nothing is waited for."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An envelope that was on the channel, and when it was heard."""

    envelope: Envelope
    heard_at: datetime
    size: int


class RecentMessages:
    """Listens to every module's channel in a task of the running loop, from `start` to `stop`."""

    def __init__(self) -> None:
        self._seen: deque[Seen] = deque(maxlen=MOST_MESSAGES)
        self._bytes = 0
        self._waiting: dict[UUID, asyncio.Future[datetime]] = {}
        self._task: asyncio.Task[None] | None = None
        # Its own: what is too late for a waiting request is not too late for everybody.
        self._breaker = CircuitBreaker("Redis for those who wait to hear of an event")

    def start(self) -> None:
        """Begin to listen."""
        self._task = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """Stop, and release the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def newest(self) -> list[Seen]:
        """What is kept, newest first."""
        return list(reversed(self._seen))

    async def wait_for(self, event_id: UUID, seconds: float) -> datetime | None:
        """When this event was heard, waiting at most that long; None if it was not.

        Waits no longer than `ANSWER_SECONDS` for a Redis that does not answer, and not at all while
        it is known not to.
        """
        for seen in self._seen:
            if seen.envelope.base_log_id == event_id:
                return seen.heard_at
        heard = self._waiting.setdefault(event_id, asyncio.get_running_loop().create_future())
        silent = asyncio.create_task(self._until_silent())
        either: set[asyncio.Future[Any]] = {heard, silent}
        try:
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return heard.result() if heard.done() else None
        finally:
            silent.cancel()
            self._waiting.pop(event_id, None)

    async def _until_silent(self) -> None:
        while True:
            try:
                with self._breaker:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        await get_redis_client().ping()
            except (RedisError, OSError, CircuitOpen):
                return
            await asyncio.sleep(ANSWER_SECONDS)

    async def _listen(self) -> None:
        async for message in subscribe_to_channel(channel_name("*")):
            if isinstance(message.content, Envelope):
                self._keep(Seen(message.content, datetime.now(UTC), len(message.data)))

    def _keep(self, seen: Seen) -> None:
        if len(self._seen) == self._seen.maxlen:
            self._drop()
        self._seen.append(seen)
        self._bytes += seen.size
        while self._bytes > MOST_BYTES and len(self._seen) > 1:
            self._drop()
        heard = self._waiting.get(seen.envelope.base_log_id)
        if heard is not None and not heard.done():
            heard.set_result(seen.heard_at)

    def _drop(self) -> None:
        self._bytes -= self._seen.popleft().size
