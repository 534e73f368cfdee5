"""A fault run: a load that commits, faults by the schedule, and the books afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cos_events.embedded import BrokerName
from cos_events.embedded.process import wait_until
from cos_events.errors import CosEventsError
from cos_events.faults import books
from cos_events.faults.bench import Bench
from cos_events.faults.kinds import Fault, Kind, Wait, kinds_on
from cos_events.faults.load import GO
from cos_events.faults.processes import Process
from cos_events.faults.report import Happened, Report
from cos_events.faults.schedule import Planned
from cos_events.faults.truth import MODULE, SUBSCRIPTIONS, Journal, make_tables

APP = "cos_events.faults.app"

TICK = 0.05
"""Seconds between two looks at processes, journal and faults."""

OnProgress = Callable[[str, int, int], None]
"""Called with what is going on, how many of how many."""


@dataclass
class _Active:
    planned: Planned
    fault: Fault
    happened: Happened
    wait: Wait = field(default_factory=lambda: Wait(0))
    since: float = field(default_factory=time.monotonic)

    def is_due(self) -> bool:
        return time.monotonic() >= self.since + self.wait.seconds or self.wait.until()


class FaultRun:
    """Commits events while faults happen, then sees whether all was delivered.

    Parameters:
        folder: for data and logs.
        broker: which broker carries the events.
        events: how many are committed, at least; the load goes on until the last fault is over.
        rate: about how many a second.
        seed: decides the load's transactions.
        faults: what happens when.
        patience: seconds without progress after which it gives up.
        quiet: seconds in which nothing may move at the end; what is late would double an effect.
        publishers: how many workers publish.
        subscribers: how many workers handle; each has all three subscriptions.
        environment: more variables for the processes.
        on_progress: told how far the run is.
        on_fault: told of each fault that is over.
    """

    def __init__(  # noqa: PLR0913 - a run's parameters
        self,
        folder: Path,
        broker: BrokerName,
        *,
        events: int,
        rate: float,
        seed: int,
        faults: Sequence[Planned],
        patience: float = 120.0,
        quiet: float = 4.0,
        publishers: int = 2,
        subscribers: int = 2,
        environment: Mapping[str, str] | None = None,
        on_progress: OnProgress = lambda *_: None,
        on_fault: Callable[[Happened], None] = lambda _: None,
    ) -> None:
        self._bench = Bench(folder, broker, {"COS_EVENTS_MODULE": MODULE, **(environment or {})})
        self._kinds: Mapping[str, Kind] = kinds_on(broker)
        self._events, self._rate, self._seed = events, rate, seed
        self._patience, self._quiet = patience, quiet
        self._publishers, self._subscribers = publishers, subscribers
        self._on_progress, self._on_fault = on_progress, on_fault
        self._journal = Journal(folder / "journal")
        self._coming = list(faults)
        self._active: list[_Active] = []
        self._happened: list[Happened] = []
        self._restarts = 0
        self._ended: list[str] = []
        self._began = 0.0

    def run(self) -> Report:
        """All of it, in bounded time.

        Raises:
            CosEventsError: it could not be carried out; a run that finds something does not raise.
        """
        self._began = time.monotonic()
        with self._bench.running():
            with self._bench.engine.begin() as connection:
                make_tables(connection)
            self._load(self._start_processes())
            settled_after, unsettled = self._settle()
            return self._report(settled_after, unsettled)

    def _start_processes(self) -> Process:
        """Start all of them; returns the application, which waits for `GO`."""
        arguments = (str(self._bench.folder), str(self._seed), str(self._rate))
        application = self._bench.start("application", ["cos_events.faults.load", *arguments])
        for number in range(self._publishers):
            self._bench.start_publisher(f"publisher-{number + 1}", APP)
        for number in range(self._subscribers):
            self._bench.start_subscriber(f"subscriber-{number + 1}", APP, SUBSCRIPTIONS)
        for process in self._bench.processes.values():
            process.await_ready()
        return application

    def _load(self, application: Process) -> None:
        (self._bench.folder / GO).touch()
        moved_at, before = time.monotonic(), 0
        try:
            while self._journal.committed < self._events or self._coming or self._active:
                self._tick()
                done = self._journal.committed
                self._on_progress("committing", min(done, self._events), self._events)
                if done > before:
                    moved_at, before = time.monotonic(), done
                elif time.monotonic() > moved_at + self._patience:
                    raise CosEventsError(
                        f"nothing was committed for {self._patience:.0f} s; "
                        f"the application's log ends:\n{application.tail()}"
                    )
                time.sleep(TICK)
        finally:
            with ExitStack() as mending:
                for active in self._active:
                    mending.callback(active.fault.close)
        self._end(application)

    def _tick(self) -> None:
        self._keep_alive()
        self._journal.read()
        for active in self._active:
            if active.is_due():
                self._advance(active)
        self._active = [each for each in self._active if each.happened.seconds is None]
        taken = {self._kinds[each.planned.kind].target for each in self._active}
        for planned in [each for each in self._coming if each.at <= self._journal.committed]:
            kind = self._kinds[planned.kind]
            if kind.target in taken:
                continue
            taken.add(kind.target)
            self._coming.remove(planned)
            self._begin(planned, kind)

    def _keep_alive(self) -> None:
        for process in self._bench.keep_alive():
            self._restarts += 1
            if process.last_words is not None:
                self._ended.append(f"{process.name}: {process.last_words}")

    def _begin(self, planned: Planned, kind: Kind) -> None:
        at = round(time.monotonic() - self._began, 2)
        happened = Happened(planned.kind, planned.at, self._journal.committed, at)
        self._happened.append(happened)
        active = _Active(planned, kind.begin(self._bench, planned), happened)
        self._active.append(active)
        self._advance(active)

    def _advance(self, active: _Active) -> None:
        try:
            active.wait, active.since = next(active.fault), time.monotonic()
        except StopIteration as over:
            happened = active.happened
            happened.hit = over.value
            happened.seconds = round(time.monotonic() - self._began - happened.began, 2)
            happened.events = self._journal.committed - happened.committed
            self._on_fault(happened)

    def _end(self, application: Process) -> None:
        """Let the application finish; what it could not, its journal says."""
        application.terminate()
        wait_until(lambda: application.pid is None, 10.0)
        application.stop()
        del self._bench.processes[application.name]
        self._journal.read()

    def _settle(self) -> tuple[float, list[str]]:
        """Wait until all is delivered and nothing moves; returns how long, and what was not."""
        began = moved_at = nearer_at = time.monotonic()
        before, least = None, None
        while True:
            self._keep_alive()
            asked_at = time.monotonic()
            with self._bench.engine.connect() as connection:
                now = books.moving(connection)
            self._on_progress("settling", now.reached, now.goal)
            if now != before:
                moved_at, before = asked_at, now
            if least is None or now.open < least:
                nearer_at, least = asked_at, now.open
            if asked_at > moved_at + self._quiet and not now.open:
                return moved_at - began, []
            if asked_at > nearer_at + self._patience:
                with self._bench.engine.connect() as connection:
                    return asked_at - began, [*books.whereabouts(connection), f"at last: {now}"]
            # However large the tables are, most of the time is left to those who work.
            time.sleep(max(0.5, 5 * (time.monotonic() - asked_at)))

    def _report(self, settled_after: float, unsettled: list[str]) -> Report:
        acknowledged = [
            event
            for each in self._journal.transactions
            if each.outcome == "committed"
            for event in each.events
        ]
        with self._bench.engine.connect() as connection:
            found = books.recorded_among(connection, acknowledged)
            return Report(
                transactions=self._journal.transactions,
                happened=self._happened,
                accounts=books.accounts(connection),
                dead=books.moving(connection).dead,
                lost_by_postgres=len(acknowledged) - found,
                postgres_away=self._bench.postgres_away,
                restarts=self._restarts,
                ended=self._ended,
                reached=self._bench.trigger.reached(),
                settled_after=settled_after,
                unsettled=unsettled,
                seconds=time.monotonic() - self._began,
            )
