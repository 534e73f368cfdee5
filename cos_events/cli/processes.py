"""Programs of ours that live as long as the command that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cos_events.errors import CosEventsError
from cos_events.parent import environment_of_child

START_TIMEOUT = 60.0
"""Seconds that a program may take until it is ready."""

STOP_TIMEOUT = 15.0
"""Seconds that it may take to finish what it is doing."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What to start.

    Attributes:
        name: of the program and its log.
        command: what follows `python -m`.
        ready: what its log holds once it is ready; a Celery worker's says so by itself.
    """

    name: str
    command: Sequence[str]
    ready: bytes = b" ready."


def worker(name: str, *arguments: str) -> Spec:
    """A `cos-events worker` with these arguments."""
    return Spec(name, ["cos_events", "worker", *arguments])


@dataclass(frozen=True, slots=True)
class Program:
    """A started program, and where its log is.

    Attributes:
        name: its name.
        log: what it prints.
        process: the program.
        ready: what its log holds once it is ready.
        since: where its part of the log begins, in bytes; before it is that of earlier runs.
    """

    name: str
    log: Path
    process: subprocess.Popen[bytes]
    ready: bytes = b" ready."
    since: int = 0

    def is_ready(self) -> bool:
        """Whether its log says so."""
        return self.ready in self.log.read_bytes()[self.since :]

    def stop(self) -> None:
        """Let it finish what it is doing, for a bounded time; then kill it and its children."""
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
def running(folder: Path, specs: Sequence[Spec]) -> Iterator[list[Program]]:
    """Run these programs while the body runs, each in a session of its own.

    A terminal's Ctrl-C thus reaches only the command, which stops them in order.

    Args:
        folder: for their logs.
        specs: what to start.

    Raises:
        CosEventsError: one ended, or was not ready in time; with the end of its log.
    """
    with ExitStack() as stack:
        started = []
        for spec in specs:
            program = _start(spec, folder / f"{spec.name}.log")
            stack.callback(program.stop)
            started.append(program)
        _wait_until_ready(started)
        yield started


def check_alive(started: Sequence[Program]) -> None:
    """Raise `CosEventsError` if one of them has ended."""
    for program in started:
        if (status := program.process.poll()) is not None:
            raise CosEventsError(
                f"{program.name} ended with status {status}; its log ends:\n{program.tail()}"
            )


def _start(spec: Spec, log: Path) -> Program:
    # An error in it may quote what others shall not see.
    log.touch(mode=0o600)
    with log.open("ab") as output:
        since = output.tell()
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", *spec.command],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=environment_of_child(),
        )
    return Program(spec.name, log, process, spec.ready, since)


def _wait_until_ready(started: Sequence[Program]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    waiting = list(started)
    while waiting:
        check_alive(waiting)
        waiting = [each for each in waiting if not each.is_ready()]
        if waiting and time.monotonic() > deadline:
            raise CosEventsError(
                f"{waiting[0].name} was not ready after {START_TIMEOUT:.0f} s; "
                f"its log ends:\n{waiting[0].tail()}"
            )
        time.sleep(0.05)
