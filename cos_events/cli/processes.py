"""Worker processes that live as long as the command that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cos_events.errors import CosEventsError
from cos_events.parent import environment_of_child

START_TIMEOUT = 60.0
"""Seconds that a worker may take until it is ready."""

STOP_TIMEOUT = 15.0
"""Seconds that a worker may take to finish what it has in hand."""


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A started program of ours, a Celery worker most often, and where its log is.

    Attributes:
        node: its name.
        log: what it prints.
        process: the program.
        ready: what its log holds once it is ready.
        since: where its part of the log begins, in bytes; before it is that of earlier runs.
    """

    node: str
    log: Path
    process: subprocess.Popen[bytes]
    ready: bytes = b" ready."
    since: int = 0

    def is_ready(self) -> bool:
        """Whether its log says so."""
        return self.ready in self.log.read_bytes()[self.since :]

    def stop(self) -> None:
        """Let it finish what it has in hand, for a bounded time; then end it and its children."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def workers(
    folder: Path, specs: Sequence[tuple[str, Sequence[str]]]
) -> Iterator[list[WorkerProcess]]:
    """Run these workers while the body runs, each in a session of its own.

    A terminal's Ctrl-C thus reaches only the command, which stops its workers in order.

    Args:
        folder: for their logs.
        specs: for each its name and the arguments of `cos-events worker`.

    Raises:
        CosEventsError: one ended, or was not ready in time; with the end of its log.
    """
    with ExitStack() as stack:
        started = []
        for name, args in specs:
            worker = _start(name, ["cos_events", "worker", *args], folder / f"{name}.log")
            stack.callback(worker.stop)
            started.append(worker)
        _wait_until_ready(started)
        yield started


@contextmanager
def program(
    name: str, folder: Path, ready: bytes, command: Sequence[str] = ()
) -> Iterator[WorkerProcess]:
    """Run `cos-events NAME` while the body runs, as `workers` runs workers.

    Args:
        name: of the command.
        folder: for its log.
        ready: what its log holds once it is ready.
        command: another one than that: what follows `python -m`.

    Raises:
        CosEventsError: it ended, or was not ready in time; with the end of its log.
    """
    started = replace(
        _start(name, command or ["cos_events", name], folder / f"{name}.log"), ready=ready
    )
    try:
        _wait_until_ready([started])
        yield started
    finally:
        started.stop()


def check_alive(started: Sequence[WorkerProcess]) -> None:
    """Raise `CosEventsError` if one of them has ended."""
    for worker in started:
        if (status := worker.process.poll()) is not None:
            raise CosEventsError(
                f"{worker.node} ended with status {status}; its log ends:\n{worker.tail()}"
            )


def _start(name: str, args: Sequence[str], log: Path) -> WorkerProcess:
    with log.open("ab") as output:
        since = output.tell()
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", *args],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=environment_of_child(),
        )
    return WorkerProcess(name, log, process, since=since)


def _wait_until_ready(started: Sequence[WorkerProcess]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    waiting = list(started)
    while waiting:
        check_alive(waiting)
        waiting = [each for each in waiting if not each.is_ready()]
        if waiting and time.monotonic() > deadline:
            raise CosEventsError(
                f"{waiting[0].node} was not ready after {START_TIMEOUT:.0f} s; "
                f"its log ends:\n{waiting[0].tail()}"
            )
        time.sleep(0.05)
