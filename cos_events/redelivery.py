"""Sends to a subscription's own queue again what was lost on the way, or behind it.

That is what was published long ago but has no delivery row (its worker was killed, its queue or the
broker's whole memory was lost), and retries long overdue. While messages still wait in that queue,
its workers are behind: then only what later events have overtaken counts as lost.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from functools import partial

from sqlalchemy import Connection, Engine, Row
from sqlalchemy.exc import SQLAlchemyError

from cos_events import broker, telemetry
from cos_events.broadcast import BrokerWire, Copy
from cos_events.feeder import each_by_itself
from cos_events.publisher import BATCH_SIZE
from cos_events.store import locks, redelivery, subscriptions
from cos_events.store.backfill import backfill
from cos_events.store.redelivery import Snapshot
from cos_events.telemetry import names

logger = logging.getLogger(__name__)

BACKFILL_SIZE = 10_000
"""The most events of a new subscription's history that are held at a time."""

CATCH_UP = 10
"""How many times more events a sweep looks at while each has a delivery row."""


class Redelivery:
    """Its cost does not grow with the history: a watermark follows it.

    Nor with what is above the watermark, which stays while one event waits in a queue: a sweep
    continues where the last one ended, and after the newest event starts at the watermark again.

    Parameters:
        engine: on the bus's database.
        wire: to the broker; not shared with other threads.
        lost_after: seconds from publication, or from a retry's time, until an event counts as lost;
            longer than a handler takes for all that its process has prefetched, or those that take
            no session may run twice.
    """

    def __init__(self, engine: Engine, wire: BrokerWire, lost_after: float) -> None:
        self._engine = engine
        self._wire = wire
        self._lost_after = timedelta(seconds=lost_after)
        self._seen: Snapshot | None = None
        self._horizon = 0
        self._looked_through: dict[str, int] = {}

    def sweep(self) -> int:
        """Send again what is lost, oldest first, a batch for each subscription; returns how many.

        Raises:
            BroadcastError: the broker does not answer, or did not take them; they are due again
                later.
        """
        try:
            with self._engine.begin() as connection:
                now = redelivery.snapshot(connection)
                self._look_ahead(now)
                looked_at = redelivery.worth_a_look(connection, now.last_id, self._lost_after)
        except SQLAlchemyError:
            self._forget()
            raise
        return each_by_itself(partial(self._sweep_one, name, late=late) for name, late in looked_at)

    def _forget(self) -> None:
        self._seen, self._horizon = None, 0
        self._looked_through.clear()

    def _look_ahead(self, now: Snapshot) -> None:
        if now.last_id < self._horizon or (
            self._seen and now.next_transaction < self._seen.next_transaction
        ):
            # Another server, which assigns ids again that this one lost.
            self._forget()
        if self._seen and now.oldest_running >= self._seen.next_transaction:
            self._horizon = self._seen.last_id
            self._seen = None
        self._seen = self._seen or now

    def _sweep_one(self, name: str, *, late: bool) -> int:
        with self._engine.begin() as connection:
            if not locks.subscription(connection, name, wait=False):
                return 0
            missing: Sequence[Row[int, bool, bool]] = ()
            if not backfill(connection, name, self._horizon, BACKFILL_SIZE, self._lost_after):
                missing = self._look(connection, name)
        if not late and not any(each.overdue for each in missing):
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
        logger.warning("%s: %d lost events are sent again", name, len(again))
        telemetry.count(names.SENT_AGAIN, name, by=len(again))
        return len(again)

    def _look(self, connection: Connection, name: str) -> Sequence[Row[int, bool, bool]]:
        """The first missing of the next events; of many more while the watermark moves freely."""
        for _ in range(CATCH_UP):
            settled = redelivery.watermark(connection, name)
            after = max(settled, self._looked_through.pop(name, 0))
            through = redelivery.end_of_sweep(connection, after)
            missing = redelivery.without_delivery(
                connection, name, self._lost_after, BATCH_SIZE, after=after, through=through
            )
            if after == settled:
                had = missing[0].id - 1 if missing else through or self._horizon
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
        overdue = [each.id for each in missing if each.overdue]
        depths = broker.queue_depths([name])
        lost = [each.id for each in missing if each.overtaken] if depths.get(name) else overdue
        noted = locks.write_past_handlers(
            connection,
            lost,
            lambda ids: redelivery.note_sent_again(connection, name, ids, self._lost_after),
        )
        again = [row for rows in noted for row in rows]
        if late:
            # A worker with older code may have begun these.
            subscriptions.forget_unwanted(connection, name)
            again += redelivery.take_late_retries(
                connection, name, self._lost_after, BATCH_SIZE, overtaken=bool(depths.get(name))
            )
        return [Copy(*row, redelivered=True) for row in again]
