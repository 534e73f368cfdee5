"""A test bench: private servers, and processes of the bus that work on them."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import Engine

from cos_events.embedded import BrokerName, EmbeddedPostgres, EmbeddedRabbitMQ, EmbeddedValkey
from cos_events.embedded.account import make_folder, server_account
from cos_events.faults.kill_points import Trigger
from cos_events.faults.processes import Process, make_folders
from cos_events.faults.wire import Wire
from cos_events.store.engine import make_engine
from cos_events.store.migrations import upgrade

SETTINGS = {
    # What is lost shows in seconds instead of minutes.
    "COS_EVENTS_REDELIVER_AFTER": "3",
    "COS_EVENTS_RELAY_INTERVAL": "0.3",
    "COS_EVENTS_WIRE_TIMEOUT": "1",
    # A process starts in two thirds of the time without pydantic's plugins.
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
}
"""The environment of all processes; what the caller sets wins."""

WORKER_OPTIONS = ("-c", "2", "-l", "WARNING", "--without-mingle", "--without-gossip")


class Bench:
    """Private servers, each wire behind a proxy, and the processes that work on them.

    Parameters:
        folder: for data and logs; made when it is missing.
        broker: which one is the broker.
        environment: more variables for the processes.

    Attributes:
        engine: on the database, while it is running.
        postgres_away: from when to when PostgreSQL was away, in seconds since the epoch.
    """

    engine: Engine

    def __init__(
        self, folder: Path, broker: BrokerName, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.trigger = Trigger(folder)
        self.postgres = EmbeddedPostgres(folder / "postgres", secrets.token_urlsafe(16))
        self.redis = Wire(EmbeddedValkey(folder / "redis", secrets.token_urlsafe(16)))
        server = EmbeddedValkey if broker == "redis" else EmbeddedRabbitMQ
        self.broker = Wire(server(folder / "broker", secrets.token_urlsafe(16)))
        self.processes: dict[str, Process] = {}
        self.postgres_away: list[tuple[float, float]] = []
        self._more = dict(environment or {})

    @contextmanager
    def running(self) -> Iterator[None]:
        """Servers with the bus's tables while the body runs; then everything stops.

        Raises:
            EmbeddedServerError: a server could not be started; the text says what to do.
        """
        make_folder(self.folder, server_account())
        make_folders(self.folder)
        self.trigger.make_folders()
        with ExitStack() as endings:
            for server in (self.postgres, self.redis, self.broker):
                # Before its start, so that one cut short leaves nothing either.
                endings.callback(server.stop)
                server.start()
            self.engine = make_engine(self.postgres.url)
            endings.callback(self.engine.dispose)
            upgrade(self.engine)
            endings.callback(self._stop_processes)
            yield

    @property
    def environment(self) -> dict[str, str]:
        """The variables of every process here: its own servers' URLs, and quick recovery."""
        urls = {
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self.redis.url,
            "BROKER_URL": self.broker.url,
        }
        return {**os.environ, **SETTINGS, **urls, **self._more}

    def start(self, name: str, arguments: Sequence[str]) -> Process:
        """Start a process: a module and its arguments, as after `python -m`."""
        process = Process(name, arguments, self.folder, self.environment)
        self.processes[name] = process
        process.start()
        return process

    def start_publisher(self, name: str, app: str) -> Process:
        """Start a publisher of this Celery application."""
        node = ("-A", app, "-n", f"{name}@%h", *WORKER_OPTIONS)
        return self.start(name, ["cos_events", "worker", "publisher", *node])

    def start_subscriber(self, name: str, app: str, subscriptions: Sequence[str]) -> Process:
        """Start a worker, with a pool of processes, of these subscriptions."""
        node = ("-A", app, "-n", f"{name}@%h", *WORKER_OPTIONS)
        return self.start(name, ["cos_events", "worker", "subscriber", *subscriptions, *node])

    def named(self, prefix: str) -> list[Process]:
        """The processes whose names begin so."""
        return [each for name, each in self.processes.items() if name.startswith(prefix)]

    def keep_alive(self) -> list[Process]:
        """Start again what has ended, as a supervisor does; returns which."""
        return [each for each in self.processes.values() if each.revive()]

    @contextmanager
    def postgres_down(self, *, crash: bool) -> Iterator[None]:
        """While the body runs PostgreSQL is away, orderly or not."""
        began = time.time()
        try:
            if crash and (pid := self.postgres.pid):
                os.kill(pid, signal.SIGQUIT)
            self.postgres.stop()
            yield
        finally:
            self.postgres.start()
            self.engine.dispose()
            self.postgres_away.append((began, time.time()))

    def _stop_processes(self) -> None:
        for process in self.processes.values():
            process.terminate()
        with ExitStack() as endings:
            for process in self.processes.values():
                endings.callback(process.stop)
