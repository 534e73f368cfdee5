"""The processes of a fault run: killed without a word, and started again, as a supervisor would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cos_events.embedded.process import identify, wait_until
from cos_events.errors import CosEventsError

FOLDER = "COS_EVENTS_FAULTS_FOLDER"
"""The environment variable with the folder of the run."""

PARENT = "COS_EVENTS_FAULTS_PARENT"
"""The environment variable with the number of the process that this one shall not outlive."""

START_SECONDS = 60.0
"""How long a process may take until it is ready."""

STOP_SECONDS = 15.0
"""How long it may take to finish what it has in hand."""

PAUSE_SECONDS = 0.5
"""At least so long after a start, a process that ended is started again."""


class Process:
    """A process in a group of its own, started by `cos_events.faults.entry`.

    One that has ended is left a zombie until `stop`: its group's number then is nobody else's, and
    what is left of its pool can be ended by it.

    Parameters:
        name: of its log.
        arguments: a module and its arguments, as after `python -m`.
        folder: of the run.
        environment: its variables.

    Attributes:
        last_words: the last line of its log, if its last run ended and nobody had killed it.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._folder = folder
        self._command = [sys.executable, "-m", "cos_events.faults.entry", *arguments]
        self._environment = {
            **environment,
            FOLDER: str(folder),
            "TMPDIR": str(folder),
            PARENT: str(os.getpid()),
        }
        self._runs: list[subprocess.Popen[bytes]] = []
        self.last_words: str | None = None
        self._launching = threading.Lock()
        self._over = False
        self._started_at = 0.0

    def start(self) -> None:
        """Start it, without waiting for it."""
        # An interrupt reaches the main thread only. Started in another one, the process cannot be
        # running without being known here, whenever the interrupt comes.
        starter = threading.Thread(target=self._launch, name=f"start-{self.name}")
        starter.start()
        starter.join()

    def _launch(self) -> None:
        with self._launching:
            if self._over:
                # An interrupt came before this thread did anything.
                return
            with self.log.open("ab") as output:
                self._started_at = time.monotonic()
                run = subprocess.Popen(  # noqa: S603 - our own program
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._environment,
                    start_new_session=True,
                )
                self._runs.append(run)
        for notes in ("ready", "killed"):
            # Of an earlier process that had this number.
            (self._folder / notes / str(run.pid)).unlink(missing_ok=True)

    @property
    def pid(self) -> int | None:
        """Its number while it runs, else None."""
        if not self._runs or identify(self._runs[-1].pid) is None:
            return None
        return self._runs[-1].pid

    @property
    def groups(self) -> list[int]:
        """The groups of all its runs; a process's group has its leader's number."""
        return [each.pid for each in self._runs]

    @property
    def is_ready(self) -> bool:
        """Whether its present run works, by its own word."""
        return (self._folder / "ready" / str(self.pid)).exists()

    def await_ready(self) -> None:
        """Wait until it works.

        Raises:
            CosEventsError: it ended, or takes too long; with the end of its log.
        """
        wait_until(lambda: self.is_ready or self.pid is None, START_SECONDS)
        if not self.is_ready:
            raise CosEventsError(f"{self.name} did not become ready; its log ends:\n{self.tail()}")

    def children(self) -> list[int]:
        """The processes of its pool that live, oldest first."""
        found = sorted((self._folder / "children").glob(f"{self.pid}.*"), key=os.path.getmtime)
        pids = [int(each.suffix[1:]) for each in found]
        return [pid for pid in pids if identify(pid) and _group_of(pid) == self.pid]

    def kill(self) -> None:
        """End it by SIGKILL; its pool is left to find that out."""
        if pid := self.pid:
            note_killed(self._folder, pid)
            os.kill(pid, signal.SIGKILL)

    def revive(self) -> bool:
        """Start it again if it has ended; returns whether it had."""
        if self.pid is not None or time.monotonic() < self._started_at + PAUSE_SECONDS:
            return False
        killed = (self._folder / "killed" / str(self._runs[-1].pid)).exists()
        self.last_words = None if killed else self.tail(1)
        self.start()
        return True

    def terminate(self) -> None:
        """Ask it to finish what it has in hand and end."""
        if pid := self.pid:
            os.kill(pid, signal.SIGTERM)

    def stop(self) -> None:
        """Let it finish, for a bounded time; then end all that is left of all its runs."""
        with self._launching:
            self._over = True
        try:
            self.terminate()
            wait_until(lambda: self.pid is None, STOP_SECONDS)
        finally:
            for run in self._runs:
                with suppress(ProcessLookupError):
                    os.killpg(run.pid, signal.SIGKILL)
                run.wait()

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def make_folders(folder: Path) -> None:
    """To be called once, before the first process is started."""
    for notes in ("children", "killed", "ready"):
        (folder / notes).mkdir()


def note_ready(folder: Path) -> None:
    """Say, in the process itself, that it works."""
    (folder / "ready" / str(os.getpid())).touch()


def note_killed(folder: Path, group: int) -> None:
    """Say that the leader of a group is about to be killed on purpose."""
    (folder / "killed" / str(group)).touch()


def note_child(folder: Path) -> None:
    """Say, in a process of a pool, whose it is."""
    (folder / "children" / f"{os.getppid()}.{os.getpid()}").touch()


def _group_of(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None
