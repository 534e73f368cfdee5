"""`demo`: the whole story on private servers, and nothing left of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from kombu import Connection, Queue
from leftovers import of_this_test

Program = Callable[..., subprocess.Popen[str]]
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
    assert "1 lines are not L1 records" in out
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
    assert process.returncode == 130
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
