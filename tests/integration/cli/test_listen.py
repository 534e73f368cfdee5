"""`listen`: the live feed on a terminal."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest

from cos_events.pubsub import publish_message_sync
from cos_events.pubsub.clients import make_client
from cos_events.recording import make_envelope

Listen = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def module(unique: Callable[[str], str]) -> str:
    """Of events that no other test hears of."""
    return unique("heard")


@pytest.fixture
def listen(program: Callable[..., subprocess.Popen[str]]) -> Listen:
    """Start the command; it listens when this returns."""

    def start(*options: object, **variables: str) -> subprocess.Popen[str]:
        process = program("listen", *options, **variables)
        assert process.stderr.readline().startswith("listening to mem0.recorded.")
        return process

    return start


@pytest.fixture
def publish(module: str) -> Callable[..., None]:
    """Broadcast an event as a publisher does."""
    numbers: Iterator[int] = count()

    def send(event_type: str = "event_log", **data: Any) -> None:
        data = data or {"number": next(numbers)}
        envelope = make_envelope(event_type=event_type, data=data, module=module)
        assert publish_message_sync(f"mem0.recorded.{module}", envelope)

    return send


def test_listen_prints_a_line_for_each_event(
    listen: Listen, publish: Callable[..., None], module: str
) -> None:
    process = listen("--module", module, "--count", 2)
    publish(text="first")
    publish("order_placed", text="zweite Zeile\n\x9b2J")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    first, second = out.splitlines()
    assert first.split("  ")[1:3] == [module, "event_log"]
    assert first.endswith('{"text": "first"}')
    assert second.endswith(r'{"text": "zweite Zeile\n\u009b2J"}')


def test_listen_prints_envelopes_as_json_lines(
    listen: Listen, publish: Callable[..., None], module: str
) -> None:
    process = listen("--module", module, "-n", 2, "--json")
    publish()
    publish()
    out, _ = process.communicate(timeout=30)
    assert [json.loads(line)["data"]["number"] for line in out.splitlines()] == [0, 1]


def test_listen_hears_every_module_and_chooses_by_type(
    listen: Listen, publish: Callable[..., None], unique: Callable[[str], str]
) -> None:
    wanted = unique("wanted")
    process = listen("--event-type", wanted, "-n", 1, "--json")
    publish()
    publish(wanted)
    out, _ = process.communicate(timeout=30)
    assert json.loads(out)["event_type"] == wanted


def test_listen_prints_what_is_no_envelope_with_its_channel(listen: Listen, module: str) -> None:
    process = listen("--module", module, "-n", 1)
    publish_message_sync(f"mem0.recorded.{module}", {"some": "thing"})
    out, _ = process.communicate(timeout=30)
    assert out.endswith(f'  "mem0.recorded.{module}"  {{"some": "thing"}}\n')


def test_ctrl_c_ends_it_with_how_many_were_heard(
    listen: Listen, publish: Callable[..., None], module: str
) -> None:
    process = listen("--module", module)
    publish()
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "\n1 heard\n")


def test_a_terminal_shows_the_beginning_of_a_long_content(
    on_terminal: Callable[..., list[str]],
    publish: Callable[..., None],
    module: str,
    eventually: Callable[..., None],
) -> None:
    with ThreadPoolExecutor(1) as pool:
        shown = pool.submit(on_terminal, "listen", "--module", module, "-n", 1, width=400)
        with make_client() as redis:
            eventually(lambda: redis.pubsub_numsub(f"mem0.recorded.{module}")[0][1] == 1)
        publish(text="x" * 1_000)
        line = shown.result(timeout=30)[-1]
    assert line.endswith("xx …")
    assert len(line) < 320


def test_a_redis_that_is_away_is_said_and_waited_for(
    program: Callable[..., subprocess.Popen[str]],
) -> None:
    process = program("listen", REDIS_URL="redis://127.0.0.1:1/0")
    said = process.stderr.readline()
    assert "the live feed of mem0.recorded.* is down" in said
    assert process.poll() is None


def test_a_module_that_is_no_name_is_refused(
    run_program: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    ended = run_program("listen", "--module", "two words")
    assert ended.returncode == 1
    assert "must not hold white space" in ended.stderr
