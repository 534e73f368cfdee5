"""`up`: everything on private servers whose data stays, and other commands find it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import redis
from click.testing import Result
from leftovers import of_this_test
from sqlalchemy import Engine

from cos_events.embedded.ownership import note_owner, this_owner
from cos_events.embedded.process import free_port
from cos_events.settings import mask

Program = Callable[..., subprocess.Popen[str]]
RunProgram = Callable[..., subprocess.CompletedProcess[str]]
Up = Callable[..., tuple[subprocess.Popen[str], Path]]
NO_SERVERS = {"REDIS_URL": "redis://127.0.0.1:1/0", "unset": ("DATABASE_URL", "BROKER_URL")}
SOMEBODYS = {"DATABASE_URL": "postgresql://127.0.0.1:1/theirs"}
FREE_PORTS = {"COS_EVENTS_API_PORT": "0", "FLOWER_PORT": "0"}


def scrape(address: str) -> str:
    with urlopen(f"http://{address}/metrics") as answer:
        return str(answer.read().decode())


@pytest.fixture
def here(place: Path) -> dict[str, Any]:
    """The environment of a folder of the test's own, which names no servers."""
    return NO_SERVERS | FREE_PORTS | {"COS_EVENTS_HOME": str(place / "home")}


@pytest.fixture
def up(program: Program, place: Path, here: dict[str, Any], eventually: Callable[..., None]) -> Up:
    """Start `cos-events up`; the process and its log, once it is ready."""

    def start(**variables: Any) -> tuple[subprocess.Popen[str], Path]:
        log = place / "up.log"
        process = program("up", log=log, **here | variables)
        eventually(lambda: "\nready; " in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        return process, log

    return start


@pytest.mark.parametrize("sign", ["using private", None], ids=["with its servers", "at once"])
def test_ctrl_c_ends_up_while_it_starts(
    sign: str | None,
    program: Program,
    place: Path,
    here: dict[str, Any],
    eventually: Callable[..., None],
) -> None:
    log = place / "up.log"
    up = program("up", log=log, **here)
    eventually(lambda: sign in log.read_text() if sign else (place / "home").exists())
    up.send_signal(signal.SIGINT)
    assert up.wait(60) == 0
    said = log.read_text()
    assert said.endswith("stopped\n")
    assert "ready" not in said
    assert [each.cmdline() for each in of_this_test(place)] == []


@pytest.mark.parametrize("setting", ["COS_EVENTS_API_PORT", "FLOWER_PORT"])
def test_up_names_the_setting_of_a_port_in_use_and_starts_nothing(
    setting: str, run_program: RunProgram, here: dict[str, Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run_program("up", **here | {setting: port})
    assert ended.returncode == 1
    assert f"{setting}: cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("command", "setting"), [("api", "COS_EVENTS_API_PORT"), ("flower", "FLOWER_PORT")]
)
def test_a_server_alone_says_the_same_of_a_port_in_use(
    command: str,
    setting: str,
    cli: Callable[..., Result],
    sentence: Callable[[Result], str],
    environment: Callable[..., None],
    database: Engine,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environment(FLOWER_BASIC_AUTH="watcher:long enough", **{setting: port})
        for options, name in (((), setting), (("--port", port), "--port")):
            said = sentence(cli(command, *options))
            assert said.startswith(f"{name}: cannot listen on 127.0.0.1:{port}")


@pytest.mark.parametrize("given", [{}, SOMEBODYS], ids=["alone", "with URLs"])
def test_a_second_up_names_the_process_that_has_the_folder_and_not_its_ports(
    given: dict[str, str], place: Path, here: dict[str, Any], run_program: RunProgram
) -> None:
    (place / "home").mkdir()
    note_owner(place / "home", this_owner(temporary=False))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        unset = tuple(name for name in here["unset"] if name not in given)
        ended = run_program("up", **here | given | {"COS_EVENTS_API_PORT": port, "unset": unset})
    assert ended.returncode == 1
    assert f"belong to process {os.getpid()}, which is running" in ended.stderr


@pytest.mark.parametrize(
    ("name", "url", "named"),
    [
        ("DATABASE_URL", "postgresql://127.0.0.1:1/gone", "DATABASE_URL, REDIS_URL"),
        ("BROKER_URL", "redis://127.0.0.1:1/0", "REDIS_URL, BROKER_URL"),
    ],
)
def test_up_says_which_variables_name_a_server_that_is_away(
    name: str, url: str, named: str, here: dict[str, Any], run_program: RunProgram
) -> None:
    unset = tuple({*here["unset"]} - {name})
    ended = run_program("up", **here | {name: url, "unset": unset})
    assert ended.returncode == 1
    assert f"{url.partition('://')[2]} cannot be used: " in ended.stderr
    assert f"or unset {named} (check .env too)" in ended.stderr


@pytest.mark.parametrize("name", ["valkey", "postgres"])
def test_up_ends_with_a_server_of_its_own_that_died(name: str, place: Path, up: Up) -> None:
    process, log = up()
    (server,) = (
        each for each in of_this_test(place) if name in each.name() and each.ppid() == process.pid
    )
    server.kill()
    assert process.wait(120) == 1
    assert f"has ended with status -9: look for the reason in {place}/home/{name}/log" in (
        log.read_text()
    )
    assert [each.cmdline() for each in of_this_test(place)] == []


def test_nobody_else_may_look_into_what_up_keeps(place: Path, up: Up) -> None:
    up()
    home = place / "home"
    # As root it may be passed through, as its servers are another user's.
    assert home.stat().st_mode & 0o067 == 0
    modes = {each.name: each.stat().st_mode & 0o777 for each in home.glob("*.log")}
    assert modes == dict.fromkeys(
        ["api.log", "flower.log", "publisher.log", "subscribers.log"], 0o600
    )


def test_a_data_folder_that_cannot_be_made_is_a_sentence(
    place: Path, here: dict[str, Any], run_program: RunProgram
) -> None:
    (place / "file").write_text("")
    ended = run_program("up", "--data", place / "file" / "home", **here)
    assert ended.returncode == 1
    assert f"The folder {place}/file/home cannot be used" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_env_speaks_of_the_running_up_whatever_the_environment_holds(
    place: Path, here: dict[str, Any], run_program: RunProgram
) -> None:
    urls = {
        "DATABASE_URL": "postgresql+psycopg2://127.0.0.1:5/now",
        "REDIS_URL": "redis://127.0.0.1:6/0",
        "BROKER_URL": "amqp://127.0.0.1:7//",
    }
    (place / "home").mkdir()
    owner = this_owner(temporary=False)
    note_owner(place / "home", replace(owner, **{k.lower(): url for k, url in urls.items()}))
    stale = {"DATABASE_URL": "postgresql://127.0.0.1:1/before", "REDIS_URL": urls["REDIS_URL"]}
    ended = run_program("env", "--json", **here | stale | {"unset": ("BROKER_URL",)})
    assert (ended.returncode, json.loads(ended.stdout)) == (0, urls)
    assert ended.stderr.startswith("DATABASE_URL in this environment named other servers")


def test_env_without_servers_says_what_to_do(run_program: RunProgram, here: dict[str, Any]) -> None:
    ended = run_program("env", **here)
    assert ended.returncode == 1
    assert "no `cos-events up` is running" in ended.stderr


def test_up_runs_the_subscribers_of_another_application(
    up: Up, here: dict[str, Any], run_program: RunProgram
) -> None:
    process, _ = up(COS_EVENTS_APP="cos_events.cli.demo.app")
    status = json.loads(run_program("status", "--json", **here).stdout)
    assert [each["subscription"] for each in status["subscriptions"]] == ["archive", "mailer"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0


def test_up_runs_until_it_is_told_to_stop_and_other_commands_find_it(
    up: Up,
    here: dict[str, Any],
    program: Program,
    place: Path,
    run_program: RunProgram,
    eventually: Callable[..., None],
) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    process, log = up(COS_EVENTS_METRICS_LISTEN=metrics)
    worker_log = place / "worker.log"
    assert ":***@" in log.read_text()
    secret = place / "home" / "flower.password"
    assert f"user cos, password in {secret}\n" in log.read_text()
    assert secret.read_text().strip() not in log.read_text()
    assert secret.stat().st_mode & 0o777 == 0o600
    worker = program("worker", "subscriber", "activity", "-c", 1, log=worker_log, **here)

    data = {"level": "INFO", "component": "tests", "message": "hello"}
    line = json.dumps({"event_type": "event_log", "data": data})
    recorded = run_program("record", "-", stdin=line, **here)
    assert recorded.stdout == "1 recorded, 0 refused\n", recorded.stderr
    accounts = json.loads(run_program("verify", "--wait", 20, "--json", **here).stdout)
    assert [
        (each["subscription"], each["committed"], each["delivered"])
        for each in accounts["subscriptions"]
    ] == [("activity", 1, 1), ("graph_staging", 1, 1)]
    counted = 'cos_events_delivered_total{module="cc",subscription="graph_staging"} 1.0'
    eventually(lambda: counted in scrape(metrics))
    assert 'cos_events_published_total{module="cc"} 1.0' in scrape(metrics)
    status = json.loads(run_program("status", "--json", **here).stdout)
    assert (status["broker"]["state"], status["channel"]["state"]) == ("up", "up")
    assert status["broker"]["url"] in log.read_text()
    assert not re.search(r"http://127\.0\.0\.1:0\b", log.read_text())

    exports = run_program("env", **here).stdout
    urls = json.loads(run_program("env", "--json", **here).stdout)
    assert exports.splitlines() == [f"export {name}={url}" for name, url in urls.items()]
    with redis.Redis.from_url(urls["BROKER_URL"]) as client:
        assert client.ping()
    found = json.loads(run_program("config", "--json", **here).stdout)
    assert found["DATABASE_URL"] == {"value": mask(urls["DATABASE_URL"]), "from": "cos-events up"}

    eventually(lambda: re.search(r" ready\.|Cannot connect", worker_log.read_text()))
    assert status["broker"]["url"].rpartition("@")[2] in worker_log.read_text()
    worker.terminate()
    process.send_signal(signal.SIGTERM)
    assert (worker.wait(120), process.wait(120)) == (0, 0)
    assert log.read_text().endswith("stopped\n")
    assert [each.cmdline() for each in of_this_test(place)] == []
