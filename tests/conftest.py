"""Servers for the tests: private PostgreSQL and Valkey from wheels, the machine's RabbitMQ."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psutil
import pytest
from kombu import Connection
from leftovers import of_this_test
from sqlalchemy import Engine, create_engine, make_url, text

from cos_events import broker, dispatcher, embedded
from cos_events.embedded import process, rabbitmq
from cos_events.pubsub import close_redis_client_sync
from cos_events.settings import get_settings
from cos_events.store import engine as store_engine
from cos_events.store.engine import get_engine
from cos_events.store.migrations import upgrade

RABBITMQ_URL = os.environ.get("COS_EVENTS_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//")


def missing(server: str) -> NoReturn:
    """A server that is not there skips a test on a laptop, and fails it in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{server}, and in CI it must", pytrace=False)
    pytest.skip(server)


@pytest.fixture(name="missing", scope="session")
def _missing() -> Callable[[str], NoReturn]:
    """The function above: test modules cannot import this file."""
    return missing


STANDSTILL = 10.0
"""Seconds: the most that counts between two looks at a condition."""


def eventually(reached: Callable[[], object], timeout: float = 120.0) -> None:
    """Wait until the condition holds; fail if it does not within `timeout` seconds.

    A machine that stood still meanwhile, as virtual ones do for minutes, has waited `STANDSTILL`.
    """
    waited, before = 0.0, time.monotonic()
    while not reached():
        now = time.monotonic()
        waited, before = waited + min(now - before, STANDSTILL), now
        if waited > timeout:
            pytest.fail(f"not reached within {timeout:.0f} s")
        time.sleep(0.02)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., None]:
    """The function above: test modules cannot import this file."""
    return eventually


@pytest.fixture(scope="session")
def servers() -> Iterator[embedded.Servers]:
    """A private PostgreSQL and Valkey for all tests that do not stop, freeze or empty them."""
    with embedded.servers() as running:
        admin = create_engine(running.database_url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            # A database for each test: what they write need not outlive the machine.
            connection.execute(text("ALTER SYSTEM SET fsync = off"))
            connection.execute(text("SELECT pg_reload_conf()"))
        admin.dispose()
        yield running


@contextmanager
def own_virtual_host() -> Iterator[str | None]:
    """The URL of a virtual host of the machine's RabbitMQ; None where we may not make one."""
    tool = shutil.which("rabbitmqctl", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    parts = urlsplit(RABBITMQ_URL)
    name = f"test-{uuid4().hex[:8]}"

    def control(*args: str) -> bool:
        return not subprocess.run([tool, "-q", *args], capture_output=True, check=False).returncode

    allowed = tool and os.geteuid() == 0 and parts.hostname in {"127.0.0.1", "localhost"}
    if not allowed or not control("add_vhost", name):
        yield None
        return
    control("set_permissions", "-p", name, parts.username or "guest", ".*", ".*", ".*")
    yield urlunsplit(parts._replace(path=f"/{name}"))
    control("delete_vhost", name)


@pytest.fixture(scope="session")
def virtual_host() -> Callable[[], AbstractContextManager[str | None]]:
    """The function above."""
    return own_virtual_host


@pytest.fixture(scope="session")
def rabbitmq_url() -> Iterator[str]:
    """The machine's RabbitMQ; where that is allowed, a virtual host for this process alone."""
    try:
        with Connection(RABBITMQ_URL, connect_timeout=3) as connection:
            connection.connect()
    except OSError as error:
        missing(f"RabbitMQ does not answer ({error})")
    with own_virtual_host() as own:
        yield own or RABBITMQ_URL


@pytest.fixture(scope="session")
def _template(servers: embedded.Servers) -> str:
    """A database with all tables, to copy for each test."""
    admin = create_engine(servers.database_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE template_migrated"))
    admin.dispose()
    migrated = create_engine(make_url(servers.database_url).set(database="template_migrated"))
    upgrade(migrated)
    migrated.dispose()
    return "template_migrated"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Set environment variables for the bus: `environment(REDIS_URL=…)`; undone afterwards."""

    def forget(engine: bool = True) -> None:
        get_settings.cache_clear()
        dispatcher.reset()
        close_redis_client_sync()
        if engine:
            store_engine.reset()

    def use(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        forget(engine="DATABASE_URL" in variables)

    before = broker.use(None)
    forget()
    yield use
    broker.use(before)
    forget()


@pytest.fixture
def database(
    servers: embedded.Servers, _template: str, environment: Callable[..., None]
) -> Iterator[Engine]:
    """An empty, migrated database of the test's own; `DATABASE_URL` and `REDIS_URL` are set."""
    name = f"test_{uuid4().hex[:12]}"
    admin = create_engine(servers.database_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {_template}"))
    url = make_url(servers.database_url).set(database=name)
    environment(DATABASE_URL=url.render_as_string(hide_password=False), REDIS_URL=servers.redis_url)
    yield get_engine()
    store_engine.reset()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_url(
    request: pytest.FixtureRequest, database: Engine, environment: Callable[..., None]
) -> str:
    """The test runs on each broker; `BROKER_URL` is set."""
    if request.param == "redis":
        url = str(make_url(os.environ["REDIS_URL"]).set(database="1").render_as_string(False))
    else:
        url = request.getfixturevalue("rabbitmq_url")
    environment(BROKER_URL=url)
    return url


@pytest.fixture
def unique() -> Callable[[str], str]:
    """A name that no other test uses: queues of the machine's RabbitMQ outlive a test."""
    return lambda name: f"{name}_{uuid4().hex[:8]}"


@pytest.fixture
def clean_queues(broker_url: str) -> Iterator[list[str]]:
    """Append names of queues: they are deleted before the test ends."""
    names: list[str] = []
    yield names
    broker.delete_queues(names)


@pytest.fixture
def rabbitmq_program() -> None:
    """The system's own rabbitmq-server: no wheel carries one."""
    if not (shutil.which("rabbitmq-server") or Path(rabbitmq.SCRIPTS).exists()):
        missing("rabbitmq-server is not installed")


@pytest.fixture
def frozen() -> Callable[[embedded.EmbeddedValkey], AbstractContextManager[None]]:
    """While the body runs this server accepts connections and never answers."""
    return lambda server: process.frozen(server.pid)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that `nobody` can reach, for a private server."""
    folder = Path(tempfile.mkdtemp(prefix="cos-events-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, here and of programs; `nobody` can pass through.

    What still runs in it at the end is killed.
    """
    folder = Path(tempfile.mkdtemp(prefix="place-of-a-test-")).resolve()
    folder.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    for left in of_this_test(folder):
        with suppress(psutil.Error):
            left.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def valkey(open_folder: Path) -> Iterator[embedded.EmbeddedValkey]:
    """A server to stop, freeze and empty."""
    server = embedded.EmbeddedValkey(open_folder / "valkey", "secret")
    server.start()
    yield server
    server.stop()
