"""What is on a dead-letter queue: copies for other tools, and messages that are not envelopes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any
from uuid import UUID

from cos_events import broker, decompression  # noqa: F401 - the second bounds what messages become
from cos_events.broadcast.message import body_of
from cos_events.envelope import Envelope
from cos_events.error_text import one_line
from cos_events.errors import BroadcastError, InvalidEnvelope
from cos_events.topology import dead_letter_queue

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unusable:
    """A message that is not an envelope, or whose event was never recorded here, as it came.

    Attributes:
        body: its bytes.
        reason: why it cannot be used.
        died_at: when it was put there; empty if something else put it there.
    """

    body: bytes
    reason: str
    died_at: str


def take_off(subscription: str, event_ids: set[UUID]) -> None:
    """Take the copies of these events off the queue, as far as the broker answers."""
    try:
        with _messages(subscription) as messages:
            for message in messages:
                if _event_of(message) in event_ids:
                    message.ack()
    except BroadcastError as error:
        logger.warning("copies may still be on the dead-letter queue: %s", error)


def unusable(subscription: str, limit: int) -> list[Unusable]:
    """The oldest messages on the queue that nobody can deliver; they stay there.

    Raises:
        BroadcastError: the broker does not answer.
    """
    with _messages(subscription) as messages:
        # All of them: those that are given back do not keep their order on the queue.
        found = map(_as_unusable, filter(_is_unusable, messages))
        return nsmallest(limit, found, key=lambda each: (each.died_at, each.body))


def _as_unusable(message: Any) -> Unusable:
    headers = message.headers or {}
    reason, died_at = (str(headers.get(name, "")) for name in ("reason", "died_at"))
    return Unusable(body_of(message), reason, died_at)


def purge_unusable(subscription: str, on_done: Callable[[int], object] = lambda _: None) -> int:
    """Drop the messages on the queue that nobody can deliver; returns how many.

    Raises:
        BroadcastError: the broker does not answer.
    """
    dropped = 0
    with _messages(subscription) as messages:
        for message in messages:
            if _is_unusable(message):
                message.ack()
                dropped += 1
                on_done(1)
    return dropped


def _is_unusable(message: Any) -> bool:
    # No attempt was made: that it is an envelope does not make it one of ours.
    return _event_of(message) is None or (message.headers or {}).get("attempts") == 0


def _event_of(message: Any) -> UUID | None:
    try:
        return Envelope.decode(body_of(message)).base_log_id
    except InvalidEnvelope:
        return None


@contextmanager
def _messages(subscription: str) -> Iterator[Iterator[Any]]:
    """Each message of the queue once; those that are not acknowledged go back at the end."""
    queue = dead_letter_queue(subscription, rabbitmq=broker.on_rabbitmq())
    try:
        with broker.connect() as connection, connection.channel() as channel:
            bound = queue(channel)
            bound.declare()
            yield iter(bound.get, None)
    except Exception as error:
        raise BroadcastError(f"{queue.name} cannot be read: {one_line(error)}") from error
