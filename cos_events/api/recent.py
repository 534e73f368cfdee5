"""The newest messages of the live feed, kept in a bounded memory."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from cos_events.envelope import Envelope
from cos_events.pubsub import subscribe_to_channel

MOST_MESSAGES = 1_000
"""Messages that are kept."""

MOST_BYTES = 4 * 2**20
"""Bytes of their JSON that are kept."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An envelope that was on the channel, and when it was heard."""

    envelope: Envelope
    heard_at: datetime
    size: int


class RecentMessages:
    """Listens to `mem0.recorded.*` in a task of the running loop, from `start` to `stop`."""

    def __init__(self) -> None:
        self._seen: deque[Seen] = deque(maxlen=MOST_MESSAGES)
        self._bytes = 0
        self._waiting: dict[UUID, asyncio.Future[datetime]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen."""
        self._task = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """End, and give the connection back."""
        while self._task is not None and not self._task.done():
            # Again, if need be: a connection that is just being made may swallow it.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.5)

    def newest(self) -> list[Seen]:
        """What is kept, newest first."""
        return list(reversed(self._seen))

    async def wait_for(self, event_id: UUID, seconds: float) -> datetime | None:
        """When this event was heard, waiting for it at most so long; None if it was not."""
        for seen in self._seen:
            if seen.envelope.base_log_id == event_id:
                return seen.heard_at
        heard = self._waiting.setdefault(event_id, asyncio.get_running_loop().create_future())
        try:
            return await asyncio.wait_for(asyncio.shield(heard), seconds)
        except TimeoutError:
            return None
        finally:
            self._waiting.pop(event_id, None)

    async def _listen(self) -> None:
        async for message in subscribe_to_channel("mem0.recorded.*"):
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
