"""`demo` and `up`: everything on private servers, and nothing left of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
import redis
from kombu import Connection, Queue

from cos_events.embedded.process import free_port
from cos_events.settings import mask

Program = Callable[..., subprocess.Popen[str]]
NO_SERVERS = {"REDIS_URL": "redis://127.0.0.1:1/0", "unset": ("DATABASE_URL", "BROKER_URL")}
FREE_PORTS = {"COS_EVENTS_API_PORT": "0", "FLOWER_PORT": "0"}
SOMEBODYS = {
    "DATABASE_URL": "postgresql://127.0.0.1:1/theirs",
    "BROKER_URL": "amqp://127.0.0.1:1//",
}
CHAPTERS = [
    *("servers", "broker", "workers", "rollback", "commit", "channel", "exchange"),
    *("activity", "graph_staging", "mailer", "archive", "retry", "dead letter", "replay"),
    *("commit", "channel", "exchange", "activity"),
]
TABLE_ROW = r"^(activity|archive|graph_staging|mailer)" + 8 * r" +(\d+)" + "$"


def scrape(address: str) -> str:
    with urlopen(f"http://{address}/metrics") as answer:
        return str(answer.read().decode())


def of_this_test(place: Path) -> list[psutil.Process]:
    """Every process whose command line or environment names the test's folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and (
                str(place) in " ".join(process.cmdline())
                or process.environ().get("TMPDIR", "").startswith(str(place))
            ):
                found.append(process)
    return found


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The TMPDIR of the programs that a test starts; `nobody` can pass through."""
    folder = Path(tempfile.mkdtemp(prefix="demo-tests-")).resolve()
    folder.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    for process in of_this_test(folder):
        with suppress(psutil.Error):
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def demo(program: Program, place: Path) -> Program:
    """Start `cos-events demo …`; the environment names servers that it may not use."""
    return lambda *args: program("demo", *args, **SOMEBODYS)


@pytest.fixture
def story(demo: Program, place: Path) -> Callable[..., tuple[int, str, str]]:
    """The exit code, the output and the errors of a demo that has left nothing behind."""

    def tell(*args: object) -> tuple[int, str, str]:
        process = demo(*args)
        out, err = process.communicate(timeout=300)
        assert [each.cmdline() for each in of_this_test(place)] == []
        assert list(place.iterdir()) == []
        assert "Traceback" not in err
        return process.returncode, out, err

    return tell


def errors_of(process: subprocess.Popen[str]) -> str:
    """What it wrote to standard error until it ended; one that does not end says where it is."""
    try:
        return process.communicate(timeout=120)[1]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        pytest.fail(process.communicate(timeout=20)[1])


def told(out: str) -> list[str]:
    """The chapters' names in order, down to the table."""
    names = "|".join(sorted({*CHAPTERS, "refused"}, key=len, reverse=True))
    return re.findall(rf"^({names}) ", out.partition("\nsubscription ")[0], re.MULTILINE)


def books(out: str) -> dict[str, list[int]]:
    return {
        name: list(map(int, counts)) for name, *counts in re.findall(TABLE_ROW, out, re.MULTILINE)
    }


def all_delivered(count: int) -> dict[str, list[int]]:
    names = ("activity", "archive", "graph_staging", "mailer")
    return {name: [count, count, *6 * [0]] for name in names}


def test_the_demo_tells_its_whole_story_and_leaves_nothing(
    story: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, err = story("--events", 20)
    assert (code, err) == (0, "")
    assert told(out) == CHAPTERS
    assert "private PostgreSQL and Valkey" in out
    assert "redis://:***@127.0.0.1" in out
    assert "mailer failed once (the mail server restarts), delivered at attempt 2" in out
    assert "archive: rejected: Rejected: the archive does not know this kind of event" in out
    assert "1 replayed and delivered" in out
    assert out.count("20 envelopes, 20 different") == 2
    assert "counted 20 events in its table" in out
    assert books(out) == all_delivered(20)
    assert out.endswith("\nmissing 0\n")


def test_on_rabbitmq_the_demo_takes_lines_from_a_file_and_leaves_no_queue(
    story: Callable[..., tuple[int, str, str]], empty_rabbitmq_url: str, tmp_path: Path
) -> None:
    data = {"level": "INFO", "component": "tests"}
    lines = [
        json.dumps({"event_type": "event_log", "data": data | {"message": f"number {number}"}})
        for number in range(12)
    ]
    lines[7:7] = ["this is no record", ""]
    source = tmp_path / "input.jsonl"
    source.write_text("\n".join(lines))
    code, out, err = story("--input", source, "--events", 100, "--broker-url", empty_rabbitmq_url)
    assert code == 0, out + err
    assert told(out) == [*CHAPTERS[:-4], "refused", *CHAPTERS[-4:]]
    assert "1 lines are no L1 records" in out
    assert "amqp://guest:***@" in out
    assert books(out) == all_delivered(12)
    assert out.endswith("\nmissing 0\n")
    with Connection(empty_rabbitmq_url) as connection:
        for name in ("activity", "mailer", "archive.dlq", "cos_events.publish"):
            with pytest.raises(connection.channel_errors), connection.channel() as channel:
                Queue(name, channel=channel).queue_declare(passive=True)


def test_a_broker_that_carries_a_bus_already_is_refused_and_left_alone(
    story: Callable[..., tuple[int, str, str]], empty_rabbitmq_url: str
) -> None:
    with Connection(empty_rabbitmq_url) as connection, connection.channel() as channel:
        queue = Queue("mailer", queue_arguments={"x-queue-type": "quorum"}, channel=channel)
        queue.declare()
        code, out, err = story("--broker-url", empty_rabbitmq_url)
        assert code == 1
        assert err.startswith("Error: the broker at amqp://guest:***@")
        assert "carries a bus already (queue 'mailer')" in err
        assert "commit" not in out
        assert queue.queue_declare(passive=True).message_count == 0
        queue.delete()


def test_an_input_that_is_too_short_for_the_story_is_a_sentence(
    story: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    source = tmp_path / "input.jsonl"
    data = {"level": "INFO", "component": "tests", "message": "the only one"}
    source.write_text(json.dumps({"event_type": "event_log", "data": data}))
    code, _, err = story("--input", source)
    assert code == 1
    assert err.startswith("Error: ")


@pytest.mark.parametrize("moment", ["its folder is made", "broker", "replay"])
def test_ctrl_c_at_any_moment_leaves_nothing(
    moment: str, demo: Program, place: Path, eventually: Callable[..., None]
) -> None:
    process = demo("--events", 5_000)
    assert process.stdout
    if moment == "its folder is made":
        # By its name: Python itself tries the place with a file of its own first.
        eventually(lambda: any(place.glob("cos-events-*")))
    else:
        assert any(line.startswith(moment) for line in process.stdout)
    process.send_signal(signal.SIGINT)
    err = errors_of(process)
    assert process.returncode not in (0, None)
    assert "Traceback" not in err
    assert [each.cmdline() for each in of_this_test(place)] == []
    assert list(place.iterdir()) == []


def test_of_a_worker_that_was_killed_nothing_is_left_either(demo: Program, place: Path) -> None:
    process = demo("--events", 5_000)
    assert process.stdout
    assert any(line.startswith("replay") for line in process.stdout)
    (worker,) = (
        each for each in psutil.Process(process.pid).children() if "graph_staging" in each.cmdline()
    )
    os.killpg(worker.pid, signal.SIGKILL)
    process.send_signal(signal.SIGINT)
    err = errors_of(process)
    assert "Traceback" not in err
    assert [each.cmdline() for each in of_this_test(place)] == []
    assert list(place.iterdir()) == []


def test_an_impatient_person_at_ctrl_c_leaves_nothing_either(
    demo: Program, place: Path, eventually: Callable[..., None]
) -> None:
    process = demo()
    assert process.stdout
    assert any(line.startswith("broker") for line in process.stdout)
    eventually(lambda: process.poll() is not None or process.send_signal(signal.SIGINT))
    _, err = process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in err
    assert [each.cmdline() for each in of_this_test(place)] == []
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("sign", ["using private", None], ids=["with its servers", "at once"])
def test_ctrl_c_ends_up_while_it_starts(
    sign: str | None, program: Program, place: Path, eventually: Callable[..., None]
) -> None:
    log = place / "up.log"
    up = program("up", log=log, **NO_SERVERS, **FREE_PORTS, COS_EVENTS_HOME=str(place / "home"))
    eventually(lambda: sign in log.read_text() if sign else (place / "home").exists())
    up.send_signal(signal.SIGINT)
    assert up.wait(60) == 0
    said = log.read_text()
    assert said.endswith("stopped\n")
    assert "ready" not in said
    assert [each.cmdline() for each in of_this_test(place)] == []


@pytest.mark.parametrize("setting", ["COS_EVENTS_API_PORT", "FLOWER_PORT"])
def test_up_names_the_setting_of_a_port_in_use_and_starts_nothing(
    setting: str, run_program: Callable[..., subprocess.CompletedProcess[str]], place: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = FREE_PORTS | {setting: str(taken.getsockname()[1])}
        ended = run_program("up", **NO_SERVERS, **ports, COS_EVENTS_HOME=str(place / "home"))
    assert ended.returncode == 1
    assert f"{setting}: nothing can listen on 127.0.0.1:{ports[setting]}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_env_without_servers_says_what_to_do(
    run_program: Callable[..., subprocess.CompletedProcess[str]], place: Path
) -> None:
    ended = run_program("env", **NO_SERVERS, COS_EVENTS_HOME=str(place / "home"))
    assert ended.returncode == 1
    assert "no `cos-events up` runs" in ended.stderr


def test_up_runs_until_it_is_told_to_stop_and_other_commands_find_it(
    program: Program,
    place: Path,
    run_program: Callable[..., subprocess.CompletedProcess[str]],
    eventually: Callable[..., None],
) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    here = NO_SERVERS | FREE_PORTS | {"COS_EVENTS_HOME": str(place / "home")}
    log, worker_log = place / "up.log", place / "worker.log"
    up = program("up", log=log, COS_EVENTS_METRICS_LISTEN=metrics, **here)
    eventually(lambda: "\nready; " in log.read_text() or up.poll() is not None)
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
    up.send_signal(signal.SIGTERM)
    assert (worker.wait(120), up.wait(120)) == (0, 0)
    assert log.read_text().endswith("stopped\n")
    assert [each.cmdline() for each in of_this_test(place)] == []
