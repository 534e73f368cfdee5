"""Finds what every other part of the bus may have lost, and deals with it.

A thread in each publisher, any number of which may run at once, that sweeps again and again:
outbox rows that got no wake-up are published, what every subscription received long ago is dropped
(`retention.py`), queues are fed with what was held (`feeder.py`), and what was lost is sent again
(`redelivery.py`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from cos_events.broadcast import make_wire
from cos_events.circuit_breaker import CircuitBreaker, CircuitOpen
from cos_events.error_text import one_line
from cos_events.errors import BroadcastError
from cos_events.feeder import Feeder
from cos_events.process import forks
from cos_events.publisher import BATCH_SIZE, publish_once
from cos_events.redelivery import Redelivery
from cos_events.retention import Retention
from cos_events.settings import get_settings
from cos_events.store.engine import get_engine

FEEDING_INTERVAL = 0.1
"""Seconds between two sweeps while held copies follow."""

logger = logging.getLogger(__name__)


class Relay:
    """Runs all sweeps in a thread, until it is stopped.

    Parameters:
        interval: seconds between two sweeps.
    """

    def __init__(self, interval: float | None = None) -> None:
        self._interval = interval or get_settings().relay_interval
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cos-events-relay", daemon=True)

    def start(self) -> None:
        """Begin to sweep."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End after the current sweep, waiting at most `timeout` seconds for it."""
        self._stopping.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        settings, engine, wire = get_settings(), get_engine(), make_wire()
        feeder = Feeder(engine, wire, settings.queue_depth, settings.redeliver_after)
        redelivery = Redelivery(engine, wire, settings.redeliver_after)
        retention = Retention(engine, settings.retain_for)
        # Each with its own breaker: if one always fails, the others continue.
        sweeps: dict[str, Callable[[], int]] = {
            "publishing": self._publish,
            "retention": retention.sweep,
            "feeding": feeder.sweep,
            "redelivery": redelivery.sweep,
        }
        breakers = {what: CircuitBreaker(f"the relay's {what}", reset_after=5.0) for what in sweeps}
        pause = self._interval
        while not self._stopping.wait(pause):
            moved = {what: _swept(sweep, breakers[what]) for what, sweep in sweeps.items()}
            # A queue that drains quickly would run dry until the next sweep.
            pause = min(self._interval, FEEDING_INTERVAL) if moved["feeding"] else self._interval

    def _publish(self) -> int:
        published = 0
        while (batch := publish_once()) >= BATCH_SIZE and not self._stopping.is_set():
            published += batch
            forks.go_first()
        return published + batch


def _swept(sweep: Callable[[], int], breaker: CircuitBreaker) -> int:
    """How much it has moved; nothing if it failed."""
    try:
        with forks.wait(), breaker:
            return sweep()
    except (BroadcastError, CircuitOpen, SQLAlchemyError) as error:
        logger.debug("the relay waits: %s", one_line(error))
    except Exception:  # a relay that died would leave rows waiting for good
        logger.exception("a sweep of the relay failed; the relay carries on")
    return 0
