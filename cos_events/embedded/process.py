"""Processes: which one it is, waiting for one, stopping one."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cos_events.errors import EmbeddedServerError

LOOPBACK = "127.0.0.1"
"""The only address the servers listen on."""

PROC: Path | None = Path("/proc") if sys.platform == "linux" else None
"""Where the system shows its processes as files; None where `ps` has to be asked."""

StopSteps = tuple[tuple[signal.Signals, float], ...]
"""Signals, each with the seconds to wait for its effect."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for good: its number may be given away again, its start time may not."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return identify(self.pid) == self


def identify(pid: int) -> Identity | None:
    """The process that has the number `pid` now; None when there is none, or a zombie."""
    if PROC is None:
        state, _, started = _ps(pid, "stat=", "lstart=").partition(" ")
    else:
        try:
            stat = (PROC / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            return None
        # The program's name, in parentheses, may hold spaces and parentheses itself.
        fields = stat.rpartition(")")[2].split()
        state, started = fields[0], fields[19]
    return Identity(pid, started.strip()) if started and state[0] not in "ZX" else None


def command_line(pid: int) -> tuple[str, str]:
    """The name of the program that `pid` runs and its arguments; empty when there is none."""
    if PROC is None:
        program, line = _ps(pid, "comm="), _ps(pid, "command=")
        name = Path(program).name
        return name, line.partition(f"{name} ")[2]
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "", ""
    return Path(words[0]).name, " ".join(words[1:]).strip()


def namespace() -> str:
    """The space in which this process's number means something; a container has its own."""
    return "" if PROC is None else str((PROC / "self" / "ns" / "pid").readlink())


def _ps(pid: int, *columns: str) -> str:
    wanted = [word for column in columns for word in ("-o", column)]
    asked = subprocess.run(  # noqa: S603 - fixed program, a number as its only variable
        ["/bin/ps", "-ww", *wanted, "-p", str(pid)],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C"},
        check=False,
    )
    return asked.stdout.strip()


def free_port() -> int:
    """A TCP port nobody listens on at this moment.

    Raises:
        EmbeddedServerError: there is none.
    """
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, 0))
        except OSError as error:
            raise EmbeddedServerError(
                f"No port of {LOOPBACK} is free ({error.strerror}): end what holds them, "
                "or name a server of your own."
            ) from error
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until `condition` holds, at most `seconds`; returns whether it does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def stop_process(pid: int, is_alive: Callable[[], bool], steps: StopSteps) -> None:
    """Send each signal of `steps` in turn until the process is gone; an interrupt kills it.

    Parameters:
        pid: The leader of its own session.
        is_alive: Whether `pid` is still that process; asked before each signal.
        steps: Signals, each with the seconds to wait for its effect.

    Raises:
        EmbeddedServerError: it outlived all of them.
    """
    try:
        for number, seconds in (*steps, (signal.SIGKILL, 5.0)):
            if not is_alive():
                return
            _send(pid, signal.SIGCONT)  # A frozen process would not see the signal.
            _send(pid, number)
            if wait_until(lambda: not is_alive(), seconds):
                return
    except BaseException:
        if is_alive():
            _send(pid, signal.SIGKILL)
        raise
    raise EmbeddedServerError(f"Process {pid} does not stop: end it with `kill -9 {pid}`.")


@contextmanager
def frozen(*pids: int | None) -> Iterator[None]:
    """While the body runs these processes stand still; one that has ended is left out.

    Args:
        *pids: their numbers, or that of a whole group with a minus; None for one that has ended.
    """
    # Zero, too, is left out: it would be the caller's own group.
    living = [pid for pid in pids if pid]
    try:
        for pid in living:
            _send(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in living:
            _send(pid, signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(pid, number)  # initdb has children in its group.
        else:
            os.kill(pid, number)
