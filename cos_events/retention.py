"""Drops what every subscription has received, once it is old enough."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import Engine

from cos_events.store import locks, retention

logger = logging.getLogger(__name__)

BATCH_SIZE = 1_000
"""Events that are looked at in one sweep."""

REST = 60.0
"""Seconds until the next round, once all that is old enough has been looked at."""


class Retention:
    """A part of the relay; any number may run, one at a time does.

    Each sweep looks at one batch, continuing where the last one ended, so that what must stay (a
    dead letter) is not looked at again and again.

    Parameters:
        engine: on the bus's database.
        keep: seconds from an event's publication until it may be dropped; None to keep all.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        engine: Engine,
        keep: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._keep = None if keep is None else timedelta(seconds=keep)
        self._clock = clock
        self._after = 0
        self._rests_until = 0.0

    def sweep(self) -> int:
        """Look at one batch; returns how many events were dropped."""
        if self._keep is None or self._clock() < self._rests_until:
            return 0
        with self._engine.begin() as connection:
            if not locks.retention(connection, wait=False):
                return 0
            page, last = retention.next_page(connection, self._after, self._keep, BATCH_SIZE)
            dropped = retention.drop(connection, page) if page else 0
            if dropped:
                retention.note(connection, self._keep)
        self._after = last or 0
        if last is None:
            self._rests_until = self._clock() + REST
        if dropped:
            logger.info("%d events that every subscription has received were dropped", dropped)
        return dropped
