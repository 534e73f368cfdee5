"""Starting a server as a child process that no interrupt can make this process lose sight of."""

import os
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from cos_events.embedded.account import Account
from cos_events.embedded.process import StopSteps, stop_process


class Child:
    """A process in a session of its own, so that a terminal's Ctrl-C reaches only its parent.

    Parameters:
        command: The program and its arguments.
        folder: Where it runs.
        log: The open file that takes its output; needed only until it is started.
        account: Who it runs as; None means the caller.
        configuration: What it reads from its standard input.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        log: IO[bytes],
        account: Account | None,
        configuration: bytes = b"",
    ) -> None:
        self._command = command
        self._folder = folder
        self._log = log
        self._account = account
        self._configuration = configuration
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._asked = False
        self._done = threading.Event()

    def launch(self) -> None:
        """Start it; an OSError means that it could not be.

        An interrupt reaches the main thread only. Started in another one, the process cannot be
        running without being known here, whenever the interrupt comes.
        """
        starter = threading.Thread(target=self._start, name="embedded-server-start")
        self._asked = True
        starter.start()
        starter.join()
        if self._failure is not None:
            raise self._failure

    def _start(self) -> None:
        account = self._account
        try:
            self._process = subprocess.Popen(  # noqa: S603 - a program of the wheels
                self._command,
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                cwd=self._folder,
                env=_environment(),
                start_new_session=True,
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else [],
            )
            with suppress(BrokenPipeError), cast(IO[bytes], self._process.stdin) as standard_input:
                standard_input.write(self._configuration)
        except OSError as error:
            self._failure = error
        finally:
            self._done.set()

    @property
    def pid(self) -> int | None:
        """Its number while it runs, else None."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """What it ended with; None while it runs."""
        return None if self._process is None else self._process.poll()

    def stop(self, steps: StopSteps = ()) -> None:
        """Stop it as `stop_process` does; without `steps` it is killed."""
        if self._asked:
            self._done.wait(10)
        process = self._process
        if process is not None:
            stop_process(process.pid, lambda: process.poll() is None, steps)


def _environment() -> dict[str, str]:
    # PGPORT and its like would change the server; the messages are read here, so in English.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}
