"""For your own tests: your subscribers, on private servers, while everything around them breaks.

A pytest plugin with one fixture, `event_bus`; switch it on in your `conftest.py` by
`pytest_plugins = ["cos_events.testing"]`. Needs pytest and the extra `embedded`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from cos_events import broker, dispatcher, record_event
from cos_events.embedded import own_folder
from cos_events.errors import CosEventsError
from cos_events.faults.bench import Bench
from cos_events.faults.kill_points import KILL_POINTS, Scope
from cos_events.faults.processes import Process
from cos_events.faults.wire import Wire
from cos_events.settings import get_settings
from cos_events.store import engine as store_engine
from cos_events.store.ledger import Account, verify
from cos_events.store.models import STILL_TO_RUN, DeliveryRow

__all__ = ["EventBus", "Unsettled", "event_bus"]

DEFAULT_TIMEOUT = 60.0
"""Seconds that `EventBus.wait` waits unless told otherwise."""


class Unsettled(CosEventsError):
    """Something was not delivered in time; the text says what, and how far each subscription is."""


class EventBus:
    """The test's own bus: servers, and workers of your Celery application.

    Attributes:
        engine: for its database, which has the bus's tables; create your own next to them.
        redis: the server of the live channels.
        broker: the server of the queues.

    Both servers can be `frozen()`, `down()`, `cut()`, `dropping(…)` and `delayed(…)` for the
    duration of a `with`, and `reset()` and emptied with `empty()`.
    """

    def __init__(self, bench: Bench) -> None:
        self.engine: Engine = bench.engine
        self.redis: Wire = bench.redis
        self.broker: Wire = bench.broker
        self._bench = bench
        self._started: set[str] = set()

    def start(
        self,
        app: str,
        subscriptions: Sequence[str],
        *,
        publishers: int = 1,
        subscribers: int = 1,
    ) -> None:
        """Start workers, and wait until they are ready.

        `wait` restarts those that have died, as a supervisor would.

        Args:
            app: the Celery application, as Celery's own `-A`; it reads `BROKER_URL`.
            subscriptions: those that the subscribers' workers run.
            publishers: how many workers publish: `publisher-1`, …
            subscribers: how many workers handle: `subscriber-1`, …, with two processes each.

        Raises:
            CosEventsError: one did not become ready; with the end of its log.
        """
        started = [
            self._bench.start_publisher(f"publisher-{number + 1}", app)
            for number in range(publishers)
        ] + [
            self._bench.start_subscriber(f"subscriber-{number + 1}", app, subscriptions)
            for number in range(subscribers)
        ]
        self._started.update(subscriptions)
        for each in started:
            each.await_ready()

    def session(self) -> Session:
        """A new session on the database, for `with`."""
        return Session(self.engine)

    def record(self, event_type: str, data: Mapping[str, Any], **fields: Any) -> UUID:
        """Record an event in a transaction of its own and commit it; see `record_event`."""
        with self.session() as session:
            event_id = record_event(session, event_type, data, **fields)
            session.commit()
        return event_id

    def kill(self, name: str) -> None:
        """Kill a worker with SIGKILL; its pool is left to find that out."""
        self._worker(name).kill()

    def kill_child(self, name: str) -> None:
        """Kill the oldest process of a subscriber's pool with SIGKILL."""
        os.kill(self._worker(name).children()[0], signal.SIGKILL)

    def kill_at(self, point: str, scope: Scope = "process") -> None:
        """Have the next worker that reaches a point of an event's way die there.

        Args:
            point: one of `cos_events.faults.kill_points.KILL_POINTS`, such as
                `subscriber.after_handler`.
            scope: `process`, or `group` for the worker with all of its pool.
        """
        if point not in KILL_POINTS:
            raise CosEventsError(
                f"there is no kill point {point!r}; there are: {', '.join(KILL_POINTS)}"
            )
        self._bench.trigger.arm(point, scope)

    def was_killed_at(self, point: str) -> bool:
        """Whether a worker has died there since `kill_at`."""
        return self._bench.trigger.fired(point) is not None

    def postgres_down(self, *, crash: bool = False) -> AbstractContextManager[None]:
        """PostgreSQL is down while the body runs; it was shut down, or crashed."""
        return self._bench.postgres_down(crash=crash)

    def accounts(self) -> dict[str, Account]:
        """What the ledger says about each subscription; see `cos-events verify`."""
        with self.engine.connect() as connection:
            return {each.subscription: each for each in verify(connection, grace=0)}

    def wait(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Account]:
        """Restart what has died, and wait until every event is delivered or a dead letter.

        A purged dead letter counts as one. Only subscriptions that were started are waited for, or
        all if none was: a worker also registers the others of its application.

        Returns:
            The accounts at the end, of all subscriptions.

        Raises:
            Unsettled: that did not happen within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._bench.keep_alive()
            accounts = self.accounts()
            waited_for = [accounts[name] for name in self._started or accounts]
            owed = [each for each in waited_for if each.committed > _settled(each)]
            if not owed:
                return accounts
            if time.monotonic() > deadline:
                what = "; ".join(self._so_far(each) for each in owed)
                raise Unsettled(f"not delivered within {timeout:.0f} s: {what}")
            time.sleep(0.1)

    def _so_far(self, account: Account) -> str:
        """How many have ended, and why the last of the others failed."""
        failures = (
            select(DeliveryRow.error)
            .where(DeliveryRow.subscription == account.subscription)
            .where(DeliveryRow.state.in_(STILL_TO_RUN), DeliveryRow.error.is_not(None))
        )
        with self.session() as session:
            error = session.scalar(failures.order_by(DeliveryRow.updated_at.desc()).limit(1))
        why = f", the last failure: {error}" if error else ""
        return f"{account.subscription}: {_settled(account)} of {account.committed}{why}"

    def _worker(self, name: str) -> Process:
        try:
            return self._bench.processes[name]
        except KeyError:
            names = ", ".join(self._bench.processes) or "none"
            raise CosEventsError(f"there is no worker {name!r}; there are: {names}") from None


def _settled(account: Account) -> int:
    return account.delivered + account.dead + account.discarded


@pytest.fixture
def event_bus(request: pytest.FixtureRequest) -> Iterator[EventBus]:
    """The test's own bus, on Redis; `DATABASE_URL`, `REDIS_URL` and `BROKER_URL` point to it.

    On RabbitMQ by `@pytest.mark.parametrize("event_bus", ["rabbitmq"], indirect=True)`.
    """
    # What the test can import, its workers can.
    importable = {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    with own_folder() as home:
        bench = Bench(home.path, getattr(request, "param", "redis"), importable)
        with bench.running(), _as_environment(bench.environment):
            yield EventBus(bench)


@contextmanager
def _as_environment(variables: Mapping[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        # An application that the test has imported may have been made for another broker.
        before = broker.use(None)
        _read_settings_again()
        try:
            yield
        finally:
            broker.use(before)
            _read_settings_again()
    get_settings.cache_clear()


def _read_settings_again() -> None:
    """Close what this process has opened with the earlier settings."""
    get_settings.cache_clear()
    dispatcher.reset()
    store_engine.reset()
