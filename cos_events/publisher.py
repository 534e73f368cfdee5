"""The publish task: claim, broadcast, mark."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from celery import shared_task
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from cos_events.broadcast import Broadcaster, make_broadcaster
from cos_events.circuit_breaker import CircuitBreaker, CircuitOpen
from cos_events.errors import BroadcastError
from cos_events.process import PerProcess, PerThread
from cos_events.store import outbox, subscriptions
from cos_events.store.engine import get_engine
from cos_events.topology import PUBLISH_TASK

logger = logging.getLogger(__name__)

BATCH_SIZE = 500
"""The most events in one transaction of a publisher."""


class Publisher:
    """Moves committed events from the outbox onto the wires. Not thread-safe."""

    def __init__(self, engine: Engine, broadcaster: Broadcaster) -> None:
        self._engine = engine
        self._broadcaster = broadcaster

    def publish(self, ids: Sequence[int] | None = None, limit: int = BATCH_SIZE) -> int:
        """Publish one batch, in one transaction that holds its rows.

        Two publishers never broadcast one row twice, unless one died in between: the row is
        locked until it is marked. A failure leaves the rows as they were; nothing is used up.

        Args:
            ids: only these outbox rows; None for the oldest that wait.
            limit: the most rows.

        Returns:
            How many events went out.

        Raises:
            BroadcastError: the broker did not take them.
        """
        with self._engine.begin() as connection:
            batch = outbox.claim(connection, limit, ids)
            if batch:
                # Read each time: a copy would leave a new subscription's first events to the relay.
                self._broadcaster.broadcast(batch, subscriptions.load(connection))
                outbox.mark_published(connection, [pending.id for pending in batch])
        return len(batch)


_publisher = PerThread(lambda: Publisher(get_engine(), make_broadcaster()))
_breaker = PerProcess(lambda: CircuitBreaker("publishing", reset_after=1.0))


def publish_once(ids: Sequence[int] | None = None) -> int:
    """Publish one batch if the wires are up; returns how many went out, 0 when they are not."""
    try:
        with _breaker.get():
            return _publisher.get().publish(ids)
    except CircuitOpen:
        return 0
    except (BroadcastError, SQLAlchemyError) as error:
        logger.debug("the rows wait: %s", error)
        return 0


@shared_task(name=PUBLISH_TASK, ignore_result=True)
def publish(ids: list[int]) -> int:
    """Publish these outbox rows, unless another publisher has; returns how many went out.

    Never fails and is never retried: what does not go out now waits for the relay.
    """
    return publish_once(ids)
