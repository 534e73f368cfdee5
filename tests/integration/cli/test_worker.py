"""`worker`: refuses in a sentence what it cannot run; delivers; ends when it is told to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import psutil
import pytest
from click.testing import Result
from locks import waits_for_a_lock
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from cos_events.embedded import Servers
from cos_events.l1 import log_l1
from cos_events.parent import PARENT
from cos_events.store.models import DeliveryRow
from workers.models import Activity, GraphNode

Cli = Callable[..., Result]
Program = Callable[..., subprocess.Popen[str]]
Workers = Callable[..., list[tuple[subprocess.Popen[str], Path]]]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def workers(program: Program, tmp_path: Path, eventually: Callable[..., None]) -> Workers:
    """Start a `cos-events worker …` for each line, its log in a file, and wait until all run."""

    def start(*lines: str) -> list[tuple[subprocess.Popen[str], Path]]:
        started = []
        for number, line in enumerate(lines):
            log = tmp_path / f"worker-{number}.log"
            started.append((program("worker", *line.split(), log=log), log))
        for process, log in started:
            eventually(lambda p=process, x=log: p.poll() is not None or " ready." in x.read_text())
            assert process.poll() is None, log.read_text()
        return started

    return start


def record(engine: Engine, count: int) -> list[UUID]:
    data = {"level": "INFO", "component": "tests", "message": "hello"}
    with Session(engine) as session, session.begin():
        return [log_l1(session, "event_log", data) for _ in range(count)]


def delivered(engine: Engine) -> dict[str, int]:
    with Session(engine) as session:
        found = select(DeliveryRow.subscription, func.count()).where(
            DeliveryRow.state == "delivered"
        )
        rows = session.execute(found.group_by(DeliveryRow.subscription)).all()
        return {row[0]: row[1] for row in rows}


def test_an_unknown_subscription_is_a_sentence_with_those_there_are(
    redis_broker: str, run_program: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_program("worker", "subscriber", "activity", "nope", "-c", "1")
    said = "Error: workers has no subscription nope; it has activity, graph_staging (another "
    said += "application: -A or COS_EVENTS_APP)\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_an_application_without_any_subscription_is_a_sentence(
    redis_broker: str, tmp_path: Path, run_program: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    made = (
        "from celery import Celery\nfrom cos_events import install\napp = install(Celery('none'))\n"
    )
    (tmp_path / "none_at_all.py").write_text(made)
    done = run_program("worker", "subscriber", "-A", "none_at_all", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: none_at_all has no subscription: declare one with")


@pytest.mark.parametrize("app", ["no_such_app", "json", "json:dumps", "cos_events.nothing"])
def test_an_unknown_application_is_a_sentence(
    app: str, database: Engine, cli: Cli, sentence: Callable[[Result], str]
) -> None:
    said = sentence(cli("worker", "subscriber", "activity", "-A", app))
    assert said.startswith(f"no Celery application '{app}' here")


def test_a_publisher_of_an_unknown_application_is_refused_without_a_traceback(
    redis_broker: str, run_program: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_program("worker", "publisher", "-A", "no_such_app")
    assert done.returncode not in (0, None)
    assert "no_such_app" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("args", [["publisher"], ["subscriber", "forgotten"]], ids=" ".join)
def test_an_application_without_install_is_a_sentence(
    args: list[str], redis_broker: str, run_program: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_program("worker", *args, "-A", "tests.apps.uninstalled")
    assert done.returncode == 1
    assert "was not given to cos_events.install: write app = install(Celery(…))" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plain_celery_worker_of_such_an_application_says_so_too(redis_broker: str) -> None:
    celery = Path(sys.executable).with_name("celery")
    done = subprocess.run(
        [celery, "-A", "tests.apps.uninstalled", "worker", "-c", "1"],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 1
    assert "this Celery application has subscriptions (forgotten)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("args", [["publisher"], ["subscriber", "activity"]], ids=" ".join)
def test_without_tables_a_worker_does_not_start(
    args: list[str],
    redis_broker: str,
    servers: Servers,
    run_program: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run_program("worker", *args, DATABASE_URL=servers.database_url)
    assert done.returncode == 1
    assert "run `cos-events db upgrade`" in done.stderr
    assert "Traceback" not in done.stderr
    assert "ready." not in done.stdout + done.stderr


def test_a_login_that_rabbitmq_refuses_is_a_sentence(
    rabbitmq_url: str,
    database: Engine,
    run_program: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    parts = urlsplit(rabbitmq_url)
    wrong = parts._replace(netloc=f"guest:secret-guess@{parts.hostname}:{parts.port}").geturl()
    done = run_program("worker", "publisher", BROKER_URL=wrong)
    assert done.returncode == 1
    assert "cannot be used: (0, 0): (403) ACCESS_REFUSED" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret-guess" not in done.stdout + done.stderr


def test_workers_deliver_what_was_committed_and_finish_what_they_have_in_hand_when_told_to_end(
    redis_broker: str, database: Engine, workers: Workers, eventually: Callable[..., None]
) -> None:
    """At the end a handler waits for a row lock of this test's, and gets it after SIGTERM."""
    (publisher, _), (subscribers, log) = workers(
        "publisher -c 1", "subscriber activity graph_staging -c 1"
    )
    ids = record(database, 12)
    eventually(lambda: delivered(database) == {"activity": 12, "graph_staging": 12})
    with Session(database) as session:
        assert session.scalar(select(func.sum(Activity.events))) == 12
        nodes = set(session.scalars(select(GraphNode.id)))
    assert nodes == {*(f"event:{event}" for event in ids), "component:tests"}
    children = psutil.Process(subscribers.pid).children(recursive=True)
    assert children
    with Session(database) as blocking:
        blocking.execute(select(Activity).with_for_update())
        record(database, 1)
        eventually(lambda: waits_for_a_lock(database))
        subscribers.send_signal(signal.SIGTERM)
        eventually(lambda: "Warm shutdown" in log.read_text())
        blocking.rollback()
    assert subscribers.wait(120) == 0
    assert delivered(database)["activity"] == 13
    eventually(lambda: not any(child.is_running() for child in children))
    publisher.send_signal(signal.SIGTERM)
    assert publisher.wait(120) == 0


def test_a_worker_does_not_outlive_the_command_that_started_it(
    redis_broker: str, database: Engine, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    """The parent is killed so that it cannot say goodbye."""
    log = tmp_path / "worker.log"
    code = (
        "import os, subprocess, sys\n"
        f"os.environ[{PARENT!r}] = str(os.getpid())\n"
        "command = [sys.executable, '-m', 'cos_events', 'worker', 'publisher', '-c', '1']\n"
        "worker = subprocess.Popen([*command, '--logfile', sys.argv[1]], start_new_session=True)\n"
        "print(worker.pid, flush=True)\n"
        "worker.wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, log],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    assert parent.stdout
    worker = psutil.Process(int(parent.stdout.readline()))
    try:
        eventually(lambda: log.exists() and " ready." in log.read_text())
        parent.kill()
        parent.wait()
        gone = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        eventually(lambda: not worker.is_running() or worker.status() in gone)
    finally:
        if worker.is_running():
            os.kill(worker.pid, signal.SIGKILL)
        parent.stdout.close()


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_to_remove_what_a_worker_consumes_is_warned_of(
    kind: str,
    request: pytest.FixtureRequest,
    database: Engine,
    environment: Callable[..., None],
    workers: Workers,
    cli: Cli,
) -> None:
    if kind == "redis":
        request.getfixturevalue("redis_broker")
    else:
        environment(BROKER_URL=request.getfixturevalue("empty_rabbitmq_url"))
    workers("subscriber activity -c 1")
    said = cli("subscriptions", "remove", "activity", input="n\n").output
    assert f"activity@{socket.gethostname()} still consumes it: stop it first" in said
    assert (
        "still consumes" not in cli("subscriptions", "remove", "graph_staging", input="n\n").output
    )
