"""The command line: in this process, or as a program; a virtual host of its own on RabbitMQ."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from uuid import UUID

import pytest
import redis
from click.testing import CliRunner, Result
from kombu import Connection
from sqlalchemy import Engine, func, make_url, select, update
from sqlalchemy.orm import Session

from cos_events import record_event
from cos_events.cli import main
from cos_events.store.models import DeliveryRow, OutboxRow, SubscriptionRow

ROOT = Path(__file__).parents[3]
SUBSCRIPTIONS = ("activity", "graph_staging", "mailer", "archive")
FIXED_QUEUES = ["cos_events.publish", *SUBSCRIPTIONS, *(f"{name}.dlq" for name in SUBSCRIPTIONS)]


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Run a command in this process."""
    return lambda *args, **options: CliRunner().invoke(main, [str(arg) for arg in args], **options)


@pytest.fixture
def sentence() -> Callable[[Result], str]:
    """What a command said when it refused: a sentence and exit code 1, no traceback."""

    def read(result: Result) -> str:
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 1, result.output
        assert "Traceback" not in result.output
        assert "Error: " in result.output
        return " ".join(result.output.partition("Error: ")[2].split())

    return read


@pytest.fixture
def program() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `cos-events …` as a program, its output in a pipe or appended to the file `log`.

    What still runs at the end is killed with its group.
    """
    started: list[subprocess.Popen[str]] = []

    def start(
        *args: object, log: Path | None = None, unset: tuple[str, ...] = (), **variables: str
    ) -> subprocess.Popen[str]:
        output = log.open("ab") if log else subprocess.PIPE
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "cos_events", *map(str, args)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
                cwd=ROOT,
                env={**kept, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **variables},
                start_new_session=True,
            )
        )
        if log:
            output.close()
        return started[-1]

    yield start
    for each in started:
        if each.poll() is None:
            os.killpg(each.pid, 9)
        each.communicate()


@pytest.fixture
def run_program(
    program: Callable[..., subprocess.Popen[str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `program`, to its end."""

    def run(
        *args: object, stdin: str | None = None, timeout: float = 90, **options: str
    ) -> subprocess.CompletedProcess[str]:
        process = program(*args, **options)
        out, err = process.communicate(stdin, timeout=timeout)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    return run


@pytest.fixture
def on_terminal() -> Callable[..., list[str]]:
    """The lines that a command shows on a terminal of this width, without their colours."""

    def run(*args: object, width: int) -> list[str]:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (50, width))
        kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        with subprocess.Popen(
            [sys.executable, "-m", "cos_events", *map(str, args)],
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env={**kept, "TERM": "xterm"},
        ):
            os.close(theirs)
            shown = b""
            # Linux ends a terminal's output by an error.
            with suppress(OSError):
                while some := os.read(ours, 65_536):
                    shown += some
        os.close(ours)
        return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()

    return run


@pytest.fixture
def redis_broker(database: Engine, environment: Callable[..., None]) -> str:
    """An empty database of the tests' Valkey is the broker."""
    url = make_url(os.environ["REDIS_URL"]).set(database="2").render_as_string(False)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    environment(BROKER_URL=url)
    return url


@pytest.fixture
def empty_rabbitmq_url(
    rabbitmq_url: str, virtual_host: Callable[[], AbstractContextManager[str | None]]
) -> Iterator[str]:
    """RabbitMQ without the bus's fixed queues."""
    with virtual_host() as own:
        if not own:
            _delete_fixed_queues(rabbitmq_url)
        yield own or rabbitmq_url
        if not own:
            _delete_fixed_queues(rabbitmq_url)


def _delete_fixed_queues(url: str) -> None:
    with Connection(url) as connection, connection.channel() as channel:
        for name in FIXED_QUEUES:
            channel.queue_delete(name)


@pytest.fixture
def add_event(database: Engine) -> Callable[..., UUID]:
    """Commit an event, published `published` seconds ago, with deliveries by subscription."""

    def add(
        module: str = "cc",
        event_type: str = "event_log",
        published: float | None = None,
        error: str = "ValueError: no good",
        **states: str | None,
    ) -> UUID:
        with Session(database) as session, session.begin():
            event_id = record_event(session, event_type, {"message": "hello"}, module=module)
            session.flush()
            outbox_id = session.scalars(
                select(OutboxRow.id).where(OutboxRow.event_id == event_id)
            ).one()
            if published is not None:
                when = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, published)
                session.execute(
                    update(OutboxRow)
                    .where(OutboxRow.event_id == event_id)
                    .values(published_at=when)
                )
            for subscription, state in states.items():
                if state is not None:
                    session.add(
                        DeliveryRow(
                            subscription=subscription,
                            event_id=event_id,
                            outbox_id=outbox_id,
                            state=state,
                            attempts=3,
                            error=None if state == "delivered" else error,
                        )
                    )
        return event_id

    return add


@pytest.fixture
def subscribe(database: Engine) -> Callable[..., None]:
    """Register a subscription by hand."""

    def add(name: str, **columns: object) -> None:
        with Session(database) as session, session.begin():
            session.add(SubscriptionRow(name=name, **columns))

    return add
