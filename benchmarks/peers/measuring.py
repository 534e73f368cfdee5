"""One round of one peer: its processes, and what is measured with them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.environments import python_of
from benchmarks.peers.work import COMMITTED, FOLDER, HANDLED
from cos_events.cli.bench.figures import percentile
from cos_events.cli.bench.marks import Marks
from cos_events.cli.processes import Program, check_alive
from cos_events.embedded.process import frozen
from cos_events.errors import CosEventsError
from cos_events.parent import environment_of_child

ROOT = Path(__file__).parents[2]

RATE = 200
"""Commits a second where latency is measured."""

BURST, WARM_UP = 1_000, 200
"""Events before anything is measured: as fast as they go, and at `RATE`."""

PROBES = 60
"""How often, twice a second, an event is tried until a worker that was just started handles one."""

PATIENCE = 20.0
"""Seconds without an event handled after which a peer has failed."""


@dataclass(frozen=True)
class Figures:
    """What one round found.

    Attributes:
        p50, p95: milliseconds from the commit to the handler.
        row: microseconds that an event costs the committing thread in the transaction, beside
            the application's own row.
        hook: the same after the commit.
        drain: events a second from a full queue.
    """

    p50: float
    p95: float
    row: float
    hook: float
    drain: float


class Application:
    """The peer's application, in a process of its own.

    Parameters:
        process: with pipes at its standard input and output.
    """

    def __init__(self, process: Program) -> None:
        self._process = process

    def commit(self, numbers: range, rate: int = 0, per_commit: int = 1) -> tuple[float, float]:
        """Commit these events; what one cost in the transaction and after it, the medians.

        Raises:
            CosEventsError: it ended, or did not answer in time.
        """
        orders, answers = self._process.process.stdin, self._process.process.stdout
        assert orders
        assert answers
        with suppress(BrokenPipeError):
            orders.write(f"{numbers.start} {len(numbers)} {rate} {per_commit}\n".encode())
            orders.flush()
        select.select([answers], [], [], len(numbers) / (rate or RATE) + PATIENCE)
        check_alive([self._process])
        if not select.select([answers], [], [], 0)[0]:
            raise CosEventsError(f"the application hangs; its log ends:\n{self._process.tail()}")
        line = answers.readline()
        if not line:
            self._process.process.wait(PATIENCE)
            check_alive([self._process])
        row, hook = map(float, line.split())
        return row, hook


class Round:
    """Measures one peer.

    Parameters:
        application: that commits.
        workers: that handle.
        folder: with the marks of both.
        take: gives so many new event numbers.
    """

    def __init__(
        self,
        application: Application,
        workers: list[Program],
        folder: Path,
        take: Callable[[int], range],
    ) -> None:
        self._application = application
        self._workers = workers
        self._handled, self._committed = (Marks(folder / each) for each in (HANDLED, COMMITTED))
        self._take = take

    @classmethod
    @contextmanager
    def of(cls, peer: Peer, folder: Path, take: Callable[[int], range]) -> Iterator[Round]:
        """With the application and the workers of this peer, warm; they end with the body.

        Raises:
            CosEventsError: they could not be started.
        """
        with ExitStack() as stack:
            application = _start(peer, "application", (f"{PEERS}.application", peer.name), folder)
            stack.callback(_stop, application)
            run = cls(Application(application), [], folder, take)
            # It makes what the workers look for.
            run._application.commit(take(1))
            for number, arguments in enumerate(peer.workers):
                worker = _start(peer, f"worker-{number}", arguments, folder)
                stack.callback(_stop, worker)
                run._workers.append(worker)
            run._warm_up()
            yield run

    def measure(self, seconds: float, events: int) -> Figures:
        """All of it, once.

        Raises:
            CosEventsError: an event did not arrive.
        """
        numbers = self._take(int(RATE * seconds))
        row, hook = self._application.commit(numbers, RATE)
        self._await_all(numbers)
        committed, handled = (
            marks.times(numbers.start, len(numbers)) for marks in (self._committed, self._handled)
        )
        spent = [1000 * (end - begin) for begin, end in zip(committed, handled, strict=True)]
        p50, p95 = percentile(spent, 50), percentile(spent, 95)
        return Figures(p50, p95, row, hook, self._drain(self._take(events)))

    def _drain(self, numbers: range) -> float:
        # Their pools, too.
        with frozen(*(-worker.process.pid for worker in self._workers)):
            self._application.commit(numbers, per_commit=100)
        begun = time.monotonic()
        self._await_all(numbers)
        return len(numbers) / (max(self._handled.times(numbers.start, len(numbers))) - begun)

    def _warm_up(self) -> None:
        probes = self._take(PROBES)
        for number in probes:
            self._application.commit(range(number, number + 1))
            time.sleep(0.5)
            check_alive(self._workers)
            if self._handled.done(probes.start, PROBES):
                break
        else:
            raise CosEventsError(f"no event was handled; the log ends:\n{self._workers[0].tail()}")
        for numbers, rate, per_commit in (
            (self._take(BURST), 0, 100),
            (self._take(WARM_UP), RATE, 1),
        ):
            self._application.commit(numbers, rate, per_commit)
            self._await_all(numbers)

    def _await_all(self, numbers: range) -> None:
        before, moved_at = -1, time.monotonic()
        while (done := self._handled.done(numbers.start, len(numbers))) < len(numbers):
            check_alive(self._workers)
            if done != before:
                before, moved_at = done, time.monotonic()
            if time.monotonic() > moved_at + PATIENCE:
                raise CosEventsError(f"{done:,} of {len(numbers):,} events came, then none")
            time.sleep(0.02)


def _start(peer: Peer, role: str, arguments: tuple[str, ...], folder: Path) -> Program:
    python = python_of(peer.requirements) if peer.requirements else sys.executable
    pipe = subprocess.PIPE if role == "application" else None
    log = folder / f"{peer.name}-{role}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(python), "-m", *arguments],
            stdin=pipe or subprocess.DEVNULL,
            stdout=pipe or output,
            stderr=output,
            cwd=ROOT,
            start_new_session=True,
            env={
                **environment_of_child(),
                FOLDER: str(folder),
                "PYTHONPATH": str(ROOT),
            },
        )
    return Program(f"{peer.shown}, {role}", log, process)


def _stop(process: Program) -> None:
    """Let it end; then what of its pool may be left."""
    process.stop()
    with suppress(ProcessLookupError):
        os.killpg(process.process.pid, signal.SIGKILL)
