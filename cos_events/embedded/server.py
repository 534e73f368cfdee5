"""What the two servers have in common: folder, account, port, start, stop."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from cos_events.embedded.account import closed_folder, make_folder, require_reach, server_account
from cos_events.embedded.binaries import needed_folders, unusable_program
from cos_events.embedded.child import Child
from cos_events.embedded.failures import PortTaken, explained, start_failure
from cos_events.embedded.process import (
    StopSteps,
    command_line,
    free_port,
    identify,
    stop_process,
    wait_until,
)
from cos_events.errors import EmbeddedServerError

START_SECONDS = 60.0
"""How long a server may take until it answers."""

PORT_ATTEMPTS = 5
"""How many free ports are tried, as another process may take one before the server does."""


class Server(ABC):
    """A private server on loopback TCP, with its files in one folder.

    Parameters:
        folder: For its files; made, mode 0700, when it is missing.
        password: One line; without it the server answers nothing.
        port: None means a free one, kept from the first start on.
        settings: More of the server's own settings, by their names; they win over the defaults.
    """

    name: ClassVar[str]
    program: ClassVar[str]
    stop_steps: ClassVar[StopSteps]

    def __init__(
        self,
        folder: Path,
        password: str,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.expanduser().resolve()
        self._password = password
        self._port = port
        self._settings = dict(settings or {})
        self._account = server_account()
        self._child: Child | None = None
        self._copied = False

    @property
    def port(self) -> int:
        """The port it listens on; an EmbeddedServerError before the first start chose one."""
        if self._port is None:
            raise EmbeddedServerError(f"The embedded {self.name} has no port yet: start it first.")
        return self._port

    @property
    def pid(self) -> int | None:
        """The number of its process while it runs, else None."""
        return None if self._child is None else self._child.pid

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, with the password."""

    def start(self) -> None:
        """Start it and return when it answers; one that runs is left alone.

        Raises:
            EmbeddedServerError: it could not be started; nothing is left running.
        """
        if self.pid is not None:
            return
        with explained(self.folder):
            make_folder(self.folder, self._account)
            require_reach(self.folder, self._account)
            self._prepare()
            if self._port is not None:
                self._launch(self._port)
                return
            for attempt in range(1, PORT_ATTEMPTS + 1):
                port = free_port()
                try:
                    self._launch(port)
                except PortTaken:
                    if attempt == PORT_ATTEMPTS:
                        raise
                else:
                    self._port = port
                    return

    def stop(self) -> None:
        """Stop it and wait for its end; one that does not run is left alone.

        Raises:
            EmbeddedServerError: it outlived even SIGKILL.
        """
        if self._child is not None:
            self._child.stop(self.stop_steps)

    def check_alive(self) -> None:
        """Check one that was started.

        Raises:
            EmbeddedServerError: it has ended.
        """
        if self._child is not None and (status := self._child.exit_code) is not None:
            raise EmbeddedServerError(
                f"The embedded {self.name} has ended with status {status}: "
                f"look for the reason in {self._log}, and start it again."
            )

    def stop_leftover(self) -> None:
        """Stop a server that an owner who is dead left running on this folder, if there is one.

        Only a process whose command line is this server on this folder is ever signalled.
        """
        with explained(self.folder), suppress(FileNotFoundError):
            pid = self._noted_pid()
            found = None if pid is None else identify(pid)
            if found is not None and self._is_ours(found.pid):
                stop_process(found.pid, found.is_alive, self.stop_steps)
            # It outlives a SIGKILL, and PostgreSQL does not start while a process has its number.
            self._pid_file.unlink()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    @property
    @abstractmethod
    def _pid_file(self) -> Path: ...

    @abstractmethod
    def _prepare(self) -> None:
        """Make the data folder ready for a start."""

    @abstractmethod
    def _command(self, port: int) -> Sequence[str]: ...

    @abstractmethod
    def _has_arguments(self, arguments: str) -> bool:
        """Whether a process with these arguments is this server on this folder."""

    @abstractmethod
    def _says_ready(self, port: int) -> bool:
        """Whether our own process says that it listens on `port`."""

    @abstractmethod
    def _answers(self, port: int) -> bool:
        """Whether it answers a client; asked only after it has said that it is ready."""

    def _configuration(self, port: int) -> bytes:  # noqa: ARG002 - for a server that reads it
        return b""

    def _noted_pid(self) -> int | None:
        first = self._pid_file.read_text().partition("\n")[0].strip()
        return int(first) if first.isdecimal() and int(first) > 0 else None

    def _is_ours(self, pid: int) -> bool:
        program, arguments = command_line(pid)
        return program == self.program and self._has_arguments(arguments)

    def _run(self, command: Sequence[str], folder: Path, configuration: bytes = b"") -> Child:
        """Make the child for `command`, known to `stop` before it runs."""
        with self._log.open("wb") as log:
            self._child = Child(
                command,
                folder=folder,
                log=log,
                account=self._account,
                configuration=configuration,
            )
            try:
                self._child.launch()
            except OSError as error:
                raise unusable_program(self.name, error) from error
        return self._child

    def _within_reach(self, program: Path) -> Path:
        """The program, or a copy if it lies where root's `nobody` cannot go, such as below /root.

        What it needs to run lies in its package and in the shared libraries beside that.
        """
        if closed_folder(program.parent, self._account) is None:
            return program
        copy = self.folder / "programs"
        if not self._copied:
            shutil.rmtree(copy, ignore_errors=True)
            for needed in needed_folders(program):
                shutil.copytree(needed, copy / needed.name, symlinks=True)
            for folder in (copy, *copy.iterdir()):
                folder.chmod(0o755)
            self._copied = True
        return copy / program.relative_to(needed_folders(program)[0].parent)

    def _launch(self, port: int) -> None:
        try:
            self._await(self._run(self._command(port), self._data, self._configuration(port)), port)
        except BaseException:
            self.stop()
            raise

    def _await(self, child: Child, port: int) -> None:
        def answers() -> bool:
            # As long as our own does not listen, the port may be another user's, who would be told
            # the password.
            return self._says_ready(port) and self._answers(port)

        ready = wait_until(lambda: child.exit_code is not None or answers(), START_SECONDS)
        if child.exit_code is not None:
            raise start_failure(self.name, self.folder, self._log, port)
        if not ready:
            raise EmbeddedServerError(
                f"The embedded {self.name} does not answer after {START_SECONDS:.0f} seconds: "
                f"look for the reason in {self._log}."
            )
