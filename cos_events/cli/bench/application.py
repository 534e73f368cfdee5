"""The application: commits L1 records at a pace, with the bus's hook or with a raw push in it."""

from __future__ import annotations

import json
import math
import time
from array import array
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

import redis
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from cos_events import broker, log_l1
from cos_events.cli.bench.events import TEXT, data_of
from cos_events.cli.bench.observer import FLOOR
from cos_events.l1 import BaseLog, EventLog
from cos_events.settings import get_settings

Hook = Literal["bus", "floor"]


class Application:
    """Commits, and notes when each commit was, and what the hook cost the committing thread.

    Only one at a time; not thread-safe.

    Parameters:
        engine: on the database.
        count: how many event numbers there are.
    """

    def __init__(self, engine: Engine, count: int) -> None:
        self.committed: array[float] = array("d", bytes(8 * count))
        self.hook_costs: dict[Hook, list[float]] = {"bus": [], "floor": []}
        self._engine = engine
        self._channel = redis.Redis.from_url(get_settings().redis_url)
        self._push = _pusher()
        # The hook's floor is an LPUSH whatever the broker; the first is measured.
        self._hook_pushes = (self._lpush, self._push) if broker.on_rabbitmq() else (self._push,)
        self._pushes: tuple[Callable[[str], object], ...] = ()
        self._raw = ""
        self._numbers: Iterable[int] = ()
        self._cost = self._begun = 0.0
        # Around every other listener: the cost is what they take.
        event.listen(Session, "after_commit", self._on_commit, insert=True)
        event.listen(Session, "after_commit", self._on_committed)
        event.listen(Session, "after_transaction_end", self._on_end, insert=True)
        event.listen(Session, "after_transaction_end", self._on_ended)

    def close(self) -> None:
        """Take the listeners off again."""
        event.remove(Session, "after_commit", self._on_commit)
        event.remove(Session, "after_commit", self._on_committed)
        event.remove(Session, "after_transaction_end", self._on_end)
        event.remove(Session, "after_transaction_end", self._on_ended)
        self._channel.close()

    def commit(self, module: str, numbers: range) -> None:
        """Commit these events in one transaction; the bus brings them to the subscriptions."""
        self._numbers, self._raw = numbers, ""
        with Session(self._engine) as session, session.begin():
            for number in numbers:
                log_l1(session, "event_log", data_of(number), module=module)
        self.hook_costs["bus"].append(self._cost)

    def commit_raw(self, number: int, *, is_hook: bool = False) -> None:
        """Commit one event's L1 rows; the hook pushes and publishes it itself, at most once.

        Args:
            number: of the event.
            is_hook: whether it is the hook that is measured; otherwise it is the event's way.
        """
        self._numbers = (number,)
        self._pushes = self._hook_pushes if is_hook else (self._push,)
        content = {
            "level": "INFO",
            "component": "bench",
            "message": TEXT,
            "attributes": {"n": number},
        }
        self._raw = json.dumps({"data": content})
        with Session(self._engine) as session, session.begin():
            base_log = BaseLog(
                id=uuid4(),
                source_module="floor",
                event_type="event_log",
                occurred_at=datetime.now(UTC),
                trace_id="t",
                request_id="r",
            )
            session.add(base_log)
            session.add(EventLog(base_log=base_log, **content))
        self.hook_costs["floor"].append(self._cost)

    def _on_commit(self, _session: Session) -> None:
        self._begun = time.perf_counter()
        now = time.monotonic()
        for number in self._numbers:
            self.committed[number] = now
        if self._raw:
            first, *others = self._pushes
            self._begun = time.perf_counter()
            first(self._raw)
            self._cost = time.perf_counter() - self._begun
            for each in others:
                each(self._raw)
            self._channel.publish(FLOOR, self._raw)

    def _lpush(self, raw: str) -> object:
        return self._channel.lpush(FLOOR, raw)

    def _on_committed(self, _session: Session) -> None:
        if not self._raw:
            self._cost = time.perf_counter() - self._begun

    def _on_end(self, _session: Session, _transaction: Any) -> None:
        self._begun = time.perf_counter()

    def _on_ended(self, _session: Session, transaction: Any) -> None:
        if not self._raw and transaction.parent is None:
            self._cost += time.perf_counter() - self._begun


def paced(
    rate: float, seconds: float, act: Callable[[int], None], *, until: float = math.inf
) -> int:
    """Call `act` with 0, 1, 2, …, so many times a second; late calls follow at once.

    Args:
        rate: calls a second.
        seconds: of calls at that rate.
        act: what is called.
        until: seconds after which no call is made, though some were late.

    Returns:
        How many calls there were.
    """
    begun = time.monotonic()
    calls = int(rate * seconds)
    for number in range(calls):
        spent = time.monotonic() - begun
        if spent > until:
            return number
        if (wait := number / rate - spent) > 0:
            time.sleep(wait)
        act(number)
    return calls


def _pusher() -> Callable[[str], object]:
    if not broker.on_rabbitmq():
        client = redis.Redis.from_url(broker.broker_url())
        return lambda raw: client.lpush(FLOOR, raw)
    channel = broker.connect(confirm=False).channel()
    return lambda raw: channel.basic_publish(
        channel.prepare_message(raw.encode()), routing_key=FLOOR
    )
