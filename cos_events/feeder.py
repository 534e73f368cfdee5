"""Hands held copies to the broker, in order, as their queues have room for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial

from sqlalchemy import Engine

from cos_events import broker
from cos_events.broadcast import BrokerWire, Copy
from cos_events.errors import BroadcastError, BrokerAway
from cos_events.process import forks
from cos_events.store import held, locks, pauses

logger = logging.getLogger(__name__)

BATCH_SIZE = 500
"""The most copies in one transaction."""

BATCHES_A_TURN = 8
"""The most batches for one subscription before the others have their turn."""


class Feeder:
    """Releases what is held. Any number may run; one subscription is fed by one of them at a time.

    Parameters:
        engine: on the bus's database.
        wire: to the broker; not shared with other threads.
        depth: the most messages that may wait in a queue.
        lost_after: seconds after which a released copy that was not received counts as lost.
    """

    def __init__(self, engine: Engine, wire: BrokerWire, depth: int, lost_after: float) -> None:
        self._engine = engine
        self._wire = wire
        self._depth = depth
        self._lost_after = timedelta(seconds=lost_after)

    def sweep(self) -> int:
        """Feed each queue that has room; returns how many copies were handed over.

        Raises:
            BroadcastError: the broker does not answer, or did not take some; they are held as
                before.
        """
        with self._engine.connect() as connection:
            waiting = held.with_due(connection)
        if not waiting:
            return 0
        depths = broker.queue_depths([row.name for row in waiting])
        return each_by_itself(
            partial(self._turn, *row, self._depth - depths.get(row.name, 0)) for row in waiting
        )

    def _turn(self, name: str, holding: bool, paused: bool, room: int) -> int:
        # Held while copies are on their way: another feeder would see an old depth.
        with self._engine.begin() as guard:
            if not locks.subscription(guard, name, wait=False):
                return 0
            if paused:
                return self._probe(name, holding)
            fed = 0
            for _ in range(BATCHES_A_TURN):
                limit = min(BATCH_SIZE, room - fed)
                batch = self._feed(name, limit) if limit > 0 else 0
                fed += batch
                if batch < BATCH_SIZE:
                    break
        if holding and fed < room:
            with self._engine.begin() as connection:
                if held.stop_holding(connection, name):
                    logger.warning("%s: nothing waits in PostgreSQL any more", name)
        return fed

    def _probe(self, name: str, holding: bool) -> int:
        if not holding:
            # What arrives meanwhile would only pass through the workers.
            with self._engine.begin() as connection:
                held.start_holding(connection, name)
        return self._feed(name, 1, probe=True)

    def _feed(self, name: str, limit: int, *, probe: bool = False) -> int:
        with self._engine.begin() as connection:
            if probe and not pauses.begin_probe(connection, name, self._lost_after):
                return 0
            released = held.release(connection, name, limit, self._lost_after)
            if not released:
                connection.rollback()
                return 0
        copies = [Copy(row.envelope, row.attempts, row.traceparent) for row in released]
        try:
            self._wire.send_to_queue(name, copies)
        except BroadcastError:
            with self._engine.begin() as connection:
                held.take_back(connection, name, [row.event_id for row in released])
            raise
        return len(released)


def each_by_itself(turns: Iterable[Callable[[], int]]) -> int:
    """Give each subscription its turn, even if another one's queue cannot be used.

    Returns:
        The sum of what they return.

    Raises:
        BroadcastError: one failed; the broker itself is down, or all the others have had theirs.
    """
    done, failed = 0, None
    for turn in turns:
        forks.go_first()
        try:
            done += turn()
        except BroadcastError as error:
            if isinstance(error, BrokerAway) or broker.is_away():
                raise
            failed = error
    if failed is not None:
        raise failed
    return done
