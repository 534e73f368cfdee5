"""Finds what every other part of the bus may have lost, and sends it again.

Four sweeps, in a thread of each publisher, any number of which may run at once. The first
publishes outbox rows that no wake-up came for. The second feeds queues with what was held
(`feeder.py`). The third sends to a subscription's own queue what was published long ago but has no
delivery row (its worker was killed, its queue or the broker's whole memory was lost), and retries
whose time is long over. While messages still wait in that queue, its workers are behind: then only
what later events have overtaken counts as lost. The fourth drops what everybody has had long ago
(`retention.py`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

from sqlalchemy import Connection, Engine, Row
from sqlalchemy.exc import SQLAlchemyError

from cos_events import broker
from cos_events.broadcast import BrokerWire, Copy, make_wire
from cos_events.circuit_breaker import CircuitBreaker, CircuitOpen
from cos_events.error_text import one_line
from cos_events.errors import BroadcastError
from cos_events.feeder import Feeder, each_by_itself
from cos_events.publisher import BATCH_SIZE, publish_once
from cos_events.retention import Retention
from cos_events.settings import get_settings
from cos_events.store import locks, redelivery, subscriptions
from cos_events.store.backfill import backfill
from cos_events.store.engine import get_engine
from cos_events.store.redelivery import Snapshot

BACKFILL_SIZE = 10_000
"""The most events of a new subscription's history that are held at a time."""

FEEDING_INTERVAL = 0.1
"""Seconds between two sweeps while held copies follow."""

CATCH_UP = 10
"""How many times as many events a sweep looks at while each has a delivery row."""

logger = logging.getLogger(__name__)


class Redelivery:
    """The third sweep. Its cost does not grow with the history: a watermark moves behind it.

    Nor with what is above the watermark, which stays while one event waits in a queue: a sweep goes
    on where the last one ended, and begins at the watermark again after the newest event.

    Parameters:
        engine: on the bus's database.
        wire: to the broker; not shared with other threads.
        after: seconds from publication, or from a retry's time, until an event counts as lost;
            longer than a handler takes for all that its process has in hand, or those that take no
            session may run twice.
    """

    def __init__(self, engine: Engine, wire: BrokerWire, after: float) -> None:
        self._engine = engine
        self._wire = wire
        self._after = timedelta(seconds=after)
        self._seen: Snapshot | None = None
        self._horizon = 0
        self._looked_through: dict[str, int] = {}

    def sweep(self) -> int:
        """Send again what is lost, oldest first, a batch for each subscription; returns how many.

        Raises:
            BroadcastError: the broker does not answer, or did not take it; it is due again later.
        """
        with self._engine.begin() as connection:
            now = redelivery.snapshot(connection)
            self._look_ahead(now)
            looked_at = redelivery.worth_a_look(connection, now.last_id, self._after)
        return each_by_itself(partial(self._sweep_one, name, late=late) for name, late in looked_at)

    def _look_ahead(self, now: Snapshot) -> None:
        if self._seen and now.oldest_running >= self._seen.next_transaction:
            self._horizon = self._seen.last_id
            self._seen = None
        self._seen = self._seen or now

    def _sweep_one(self, name: str, *, late: bool) -> int:
        with self._engine.begin() as connection:
            if not locks.subscription(connection, name, wait=False):
                return 0
            missing: Sequence[Row[int, bool, bool]] = ()
            if not backfill(connection, name, self._horizon, BACKFILL_SIZE, self._after):
                missing = self._look(connection, name)
        if not late and not any(overdue for _, overdue, _ in missing):
            return 0
        # In a transaction of its own: what follows may wait for a handler's.
        with self._engine.begin() as connection:
            if not locks.subscription(connection, name, wait=False):
                return 0
            again = self._take(connection, name, missing, late=late)
        if not again:
            return 0
        # Noted first: a relay that dies in between leaves a delay, not a flood of copies.
        self._wire.send_to_queue(name, again)
        logger.warning("%s: %d events had got lost and are sent again", name, len(again))
        return len(again)

    def _look(self, connection: Connection, name: str) -> Sequence[Row[int, bool, bool]]:
        """The first missing of the next events; of many more while the watermark moves freely."""
        for _ in range(CATCH_UP):
            settled = redelivery.watermark(connection, name)
            after = max(settled, self._looked_through.pop(name, 0))
            through = redelivery.end_of_sweep(connection, after)
            missing = redelivery.without_delivery(
                connection, name, self._after, BATCH_SIZE, after=after, through=through
            )
            if after == settled:
                had = missing[0][0] - 1 if missing else through or self._horizon
                redelivery.advance(connection, name, min(had, self._horizon))
            if through is not None and len(missing) < BATCH_SIZE:
                self._looked_through[name] = through
            if missing or through is None or after > settled or through > self._horizon:
                break
        return missing

    def _take(
        self,
        connection: Connection,
        name: str,
        missing: Sequence[Row[int, bool, bool]],
        *,
        late: bool,
    ) -> list[Copy]:
        overdue = [each[0] for each in missing if each[1]]
        depths = broker.queue_depths([name])
        lost = [each[0] for each in missing if each[2]] if depths.get(name) else overdue
        noted = locks.write_past_handlers(
            connection,
            lost,
            lambda ids: redelivery.note_sent_again(connection, name, ids, self._after),
        )
        again = [row for rows in noted for row in rows]
        if late:
            # Which a worker with older code may have begun.
            subscriptions.forget_unwanted(connection, name)
            again += redelivery.take_late_retries(
                connection, name, self._after, BATCH_SIZE, overtaken=bool(depths.get(name))
            )
        return [Copy(envelope, attempts, True, trace) for envelope, attempts, trace in again]


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
        """End after the sweep in hand, waiting at most `timeout` seconds for it."""
        self._stopping.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        settings, engine, wire = get_settings(), get_engine(), make_wire()
        feeder = Feeder(engine, wire, settings.queue_depth, settings.redeliver_after)
        redelivery = Redelivery(engine, wire, settings.redeliver_after)
        retention = Retention(engine, settings.retain_for)
        # Each with its own breaker: where one always fails, the others go on.
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
        return published + batch


def _swept(sweep: Callable[[], int], breaker: CircuitBreaker) -> int:
    """How much it has moved; nothing where it failed."""
    try:
        with breaker:
            return sweep()
    except (BroadcastError, CircuitOpen, SQLAlchemyError) as error:
        logger.debug("the relay waits: %s", one_line(error))
    except Exception:  # a relay that died would leave rows waiting for good
        logger.exception("the relay's sweep failed; it goes on")
    return 0
