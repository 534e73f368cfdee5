"""The publish task: claim and mark, broadcast, commit."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import partial

from celery import shared_task
from sqlalchemy import Connection, Engine, func
from sqlalchemy.exc import SQLAlchemyError

from cos_events import broker, telemetry
from cos_events.broadcast import Broadcaster, make_broadcaster
from cos_events.circuit_breaker import CircuitBreaker, CircuitOpen
from cos_events.error_text import one_line
from cos_events.errors import BroadcastError, BrokerAway
from cos_events.process import PerProcess, PerThread
from cos_events.queue_room import QueueRoom
from cos_events.settings import get_settings
from cos_events.store import held, locks, outbox, subscriptions
from cos_events.store.engine import get_relaxed_engine
from cos_events.store.models import OutboxRow
from cos_events.store.outbox import Pending
from cos_events.subscription import Recipient
from cos_events.telemetry import names
from cos_events.topology import PUBLISH_TASK

logger = logging.getLogger(__name__)

BATCH_SIZE = 500
"""The most events in one transaction of a publisher."""


class Publisher:
    """Moves committed events from the outbox onto the wires. Not thread-safe.

    Parameters:
        engine: on the bus's database.
        broadcaster: both wires.
        room: what is known of the queues' depths; may be shared by several publishers.
    """

    def __init__(
        self, engine: Engine, broadcaster: Broadcaster, room: QueueRoom | None = None
    ) -> None:
        self._engine = engine
        self._broadcaster = broadcaster
        self._room = room or make_room()
        self._was_refused = False

    def publish(self, ids: Sequence[int] | None = None, limit: int = BATCH_SIZE) -> int:
        """Publish one batch, in one transaction that holds its rows.

        After a batch that the broker did not take, a single row is tried before the next.

        Two publishers never broadcast one row twice, unless one died in between: the row is
        locked until its mark is committed. A failure leaves the rows as they were; nothing is used
        up.

        Args:
            ids: only these outbox rows; None for the oldest that wait.
            limit: the most rows of the batch.

        Returns:
            How many events went out.

        Raises:
            BroadcastError: the broker did not take them.
        """
        self._hold_full_queues()
        # Before anything is written: while the broker is down no row is marked in vain.
        self._broadcaster.open()
        # A single row tests whether the broker takes messages again: many would be written in vain.
        asked = self._publish(ids, 1) if self._was_refused else 0
        return asked + self._publish(ids, limit)

    def _publish(self, ids: Sequence[int] | None, limit: int) -> int:
        with self._engine.begin() as connection:
            batch = outbox.claim(connection, limit, ids)
            if not batch:
                return 0
            claimed_at = time.monotonic()
            with telemetry.spans_for(
                names.PUBLISH, "", [each.traceparent for each in batch]
            ) as spans:
                batch = [each.continuing(spans[each.traceparent].traceparent) for each in batch]
                # Read each time: a cache would leave a new subscription's events to the relay.
                recipients = subscriptions.load(connection)
                # First: a batch that fails may be in some queues already, and comes again.
                self._room.spend(batch, recipients)
                self._was_refused = True
                self._broadcaster.broadcast(batch, recipients)
                self._was_refused = False
                holding = [each for each in recipients if each.holding]
                if holding:
                    # What a handler is running right now is not held: the relay takes care of it.
                    locks.write_past_handlers(
                        connection,
                        [pending.id for pending in batch],
                        partial(_hold, connection, holding),
                    )
        _count(batch, time.monotonic() - claimed_at, holding)
        return len(batch)

    def _hold_full_queues(self) -> None:
        if not (unknown := self._room.unknown()):
            return
        try:
            depths = broker.queue_depths(unknown)
        except BrokerAway:
            return
        for name in self._room.look(depths, unknown):
            logger.warning("%s: its queue is full; more copies wait in PostgreSQL", name)
            with self._engine.begin() as connection:
                held.start_holding(connection, name)


def _hold(connection: Connection, holding: Iterable[Recipient], ids: Sequence[int]) -> None:
    held.hold(connection, [each.name for each in holding], OutboxRow.id == func.any(list(ids)))


def _count(batch: Sequence[Pending], since: float, holding: Iterable[Recipient]) -> None:
    kinds = Counter((each.source_module, each.event_type) for each in batch)
    for (module, event_type), events in kinds.items():
        telemetry.count(names.PUBLISHED, module, by=events)
        for each in holding:
            if each.wants(module, event_type):
                telemetry.count(names.HELD, module, each.name, by=events)
    latencies = defaultdict(list)
    for pending in batch:
        latencies[pending.source_module].append(pending.waited + since)
    for module, seconds in latencies.items():
        telemetry.observe(names.PUBLISH_LATENCY, module, seconds=seconds)


def make_room() -> QueueRoom:
    """Knows nothing yet about any queue."""
    return QueueRoom(get_settings().queue_depth, BATCH_SIZE, by_module=broker.on_rabbitmq())


_room = PerProcess(make_room)
_publisher = PerThread(lambda: Publisher(get_relaxed_engine(), make_broadcaster(), _room.get()))
_breaker = PerProcess(lambda: CircuitBreaker("publishing", reset_after=1.0))


def publish_once(ids: Sequence[int] | None = None) -> int:
    """Publish one batch if the wires are up; returns how many went out, 0 when they are not."""
    try:
        with _breaker.get():
            return _publisher.get().publish(ids)
    except CircuitOpen:
        return 0
    except (BroadcastError, SQLAlchemyError) as error:
        logger.debug("the rows wait: %s", one_line(error))
        return 0


# Acknowledged late, which ends its turn among those gathered; see `gathering.py`.
@shared_task(name=PUBLISH_TASK, ignore_result=True, acks_late=True)
def publish(ids: list[int]) -> int:
    """Publish these outbox rows, unless another publisher has; returns how many went out.

    Never fails and is never retried: what does not go out now waits for the relay.
    """
    return sum(
        publish_once(ids[start : start + BATCH_SIZE]) for start in range(0, len(ids), BATCH_SIZE)
    )
