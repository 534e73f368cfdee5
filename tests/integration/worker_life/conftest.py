"""pytest-celery, which drives containers, on processes: a Valkey and a worker of COS's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import _state
from pytest_celery import CeleryTestSetup, CeleryWorkerContainer, RedisContainer
from pytest_celery.vendors.redis.broker.api import RedisTestBroker
from sqlalchemy import Engine

from cos_events.embedded import EmbeddedValkey

ROOT = Path(__file__).parents[3]
APP = """
import os
from cos_events import broker
from workers import app
app.conf.update(
    include=[*app.conf.include, "pytest_celery.vendors.worker.tasks"],
    task_ignore_result=False,
    result_backend=os.environ["CELERY_RESULT_BACKEND"],
    broker_transport_options={
        **broker.transport_options(app.conf.broker_url),
        "visibility_timeout": 2,
        "unacked_restore_throttle": 1,
    },
)
"""
"""COS's own application, with pytest-celery's `ping`, and a redelivery that a test can wait for."""


class Process:
    """What pytest-celery asks of a docker-py container, of a server's or a worker's process."""

    def __init__(self, name: str) -> None:
        self.id = uuid4().hex
        self.name = f"{name}-{self.id[:6]}"
        self.attrs: dict[str, Any] = {
            "Config": {"Hostname": "127.0.0.1", "Env": []},
            "NetworkSettings": {"Networks": {}, "Ports": {}},
            "HostConfig": {"PortBindings": None},
        }

    @property
    def status(self) -> str:
        return "running" if self.runs() else "exited"

    def reload(self) -> None:
        """The status is always the present one."""

    def runs(self) -> bool:
        raise NotImplementedError


class Worker(Process):
    """A Celery worker; its log is that of its present run, or of the last."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str]) -> None:
        super().__init__("worker")
        self._command = [each.format(id=self.id[:12]) for each in command]
        self._log, self._env = log, env
        self.exit_codes: list[int] = []
        self.start()

    def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=self._env,
                start_new_session=True,
            )

    def runs(self) -> bool:
        return self._process.poll() is None

    def logs(self) -> bytes:
        return self._log.read_bytes()

    def kill(self, number: str | int | None = None) -> None:
        """As Docker does: SIGKILL takes all of it, other signals go to its first process."""
        number = getattr(signal, str(number or "SIGKILL"), number)
        if number == signal.SIGKILL:
            os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.send_signal(int(number))  # type: ignore[arg-type]
        self.exit_codes.append(self._process.wait(120))

    def restart(self, timeout: float = 30) -> None:
        if self.runs():
            self._process.terminate()
            self.exit_codes.append(self._process.wait(timeout))
        self.start()


class Valkey(Process):
    """A private Valkey; restarted it is empty."""

    def __init__(self, server: EmbeddedValkey) -> None:
        super().__init__("valkey")
        self.server = server

    def runs(self) -> bool:
        return self.server.pid is not None

    def logs(self) -> bytes:
        return (self.server.folder / "log").read_bytes()

    def kill(self, _number: str | int | None = None) -> None:
        self.server.stop()

    def restart(self, timeout: float = 30) -> None:
        self.server.stop()
        self.server.start()


class ValkeyContainer(RedisContainer):
    """pytest-celery's Redis on a process; its URL has a password and the process's port."""

    @property
    def url(self) -> str:
        return str(self._container.server.url)

    host_url = url

    @property
    def port(self) -> int:
        return int(self._container.server.port)


class WorkerContainer(CeleryWorkerContainer):
    """COS's worker, with every queue of the bus, as pytest-celery's container."""

    @classmethod
    def command(cls, *args: str, **_: Any) -> list[str]:
        queues = f"cos_events.publish,activity,graph_staging,{cls.worker_queue()}"
        worker = ["-m", "celery", "-A", "life_app", "worker", "-l", "INFO", "-c", "1", *args]
        return [sys.executable, *worker, "-n", f"{cls.worker_name()}@{{id}}", "-Q", queues]


@pytest.fixture
def default_redis_broker(valkey: EmbeddedValkey) -> ValkeyContainer:
    return ValkeyContainer(Valkey(valkey))


@pytest.fixture
def default_redis_backend(default_redis_broker: ValkeyContainer) -> ValkeyContainer:
    return default_redis_broker


@pytest.fixture
def celery_broker(celery_redis_broker: RedisTestBroker) -> RedisTestBroker:
    """Redis only: its broker can be restarted by a test."""
    return celery_redis_broker


@pytest.fixture
def default_worker_container_cls() -> type[WorkerContainer]:
    return WorkerContainer


@pytest.fixture
def start_worker(
    database: Engine, environment: Callable[..., None], tmp_path: Path
) -> Iterator[Callable[[str], WorkerContainer]]:
    """Start a worker on the broker of this URL; this process records for it."""
    (tmp_path / "life_app.py").write_text(APP)
    started: list[Worker] = []

    def start(url: str) -> WorkerContainer:
        environment(BROKER_URL=url, REDIS_URL=url)
        variables = {"CELERY_RESULT_BACKEND": url, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        log = tmp_path / f"worker-{len(started)}.log"
        started.append(Worker(WorkerContainer.command(), log, os.environ | variables))
        return WorkerContainer(started[-1])

    yield start
    for each in started:
        if each.runs():
            each.kill()


@pytest.fixture
def default_worker_container(
    start_worker: Callable[[str], WorkerContainer], celery_worker_cluster_config: dict[str, Any]
) -> WorkerContainer:
    (url,) = celery_worker_cluster_config["celery_broker_cluster_config"]["urls"]
    return start_worker(url)


@pytest.fixture(autouse=True)
def _current_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application that pytest-celery makes becomes the current one: not for other tests."""
    monkeypatch.setattr(_state._tls, "current_app", _state._tls.current_app)


@pytest.fixture
def life(celery_setup: CeleryTestSetup) -> CeleryTestSetup:
    """A broker and a worker that is ready."""
    assert celery_setup.ready(ping=True, control=True)
    return celery_setup
