"""Real processes: `record`, a publisher and pool children are one trace, and answer Prometheus."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from sqlalchemy import Engine, make_url

if TYPE_CHECKING:
    from conftest import Collector

ROOT = Path(__file__).parents[3]
TREE = """\
record
  commit: committed
    publish
      broadcast
      consume activity: delivered
        attempt activity
      consume graph_staging: delivered
        attempt graph_staging
"""


@pytest.fixture
def program(
    database: Engine, environment: Callable[..., None], collector: Collector, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `cos-events …` as a program that sends its traces to the collector."""
    url = make_url(os.environ["REDIS_URL"]).set(database="3").render_as_string(False)
    with Redis.from_url(url) as client:
        client.flushdb()
    environment(BROKER_URL=url)
    started: list[subprocess.Popen[bytes]] = []

    def start(*args: object) -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("ab") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "cos_events", *map(str, args)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=ROOT,
                    env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
                    start_new_session=True,
                )
            )
        return started[-1]

    yield start
    for each in started:
        if each.poll() is None:
            os.killpg(each.pid, signal.SIGKILL)
            each.wait()


def free_address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def scrape(listen: str) -> dict[tuple[str, ...], float]:
    """Name and label values → value; nothing while nobody answers."""
    try:
        with urlopen(f"http://{listen}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except URLError:
        return {}
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_record_and_workers_are_one_trace_and_count_what_they_did(
    program, collector: Collector, tmp_path: Path, eventually
) -> None:
    line = {"event_type": "event_log", "data": {"level": "info", "component": "c", "message": "m"}}
    (tmp_path / "lines").write_text(json.dumps(line))
    publisher, subscribers = free_address(), free_address()
    names = ("activity", "graph_staging")
    workers = [
        program("worker", "publisher", "--metrics-listen", publisher),
        program("worker", "subscriber", *names, "--metrics-listen", subscribers),
    ]
    done = ("cos_events_delivered_total", "cc", "graph_staging")
    eventually(lambda: scrape(subscribers) and scrape(publisher))
    eventually(lambda: ("cos_events_lag_events", "graph_staging") in scrape(publisher))
    assert program("record", tmp_path / "lines").wait(120) == 0
    eventually(lambda: scrape(subscribers).get(done) == 1)
    counted, told = scrape(publisher), scrape(subscribers)
    assert counted["cos_events_published_total", "cc"] == 1
    assert told["cos_events_delivered_total", "cc", "activity"] == 1
    assert told["cos_events_lag_events", "activity"] == 0
    for worker in workers:
        worker.terminate()
    assert [worker.wait(120) for worker in workers] == [0, 0], (tmp_path / "log").read_text()
    assert collector.tree() == TREE
    assert len({span.trace_id for span in collector.spans()}) == 1
    assert {span.service for span in collector.spans()} == {
        "cos-events-record",
        "cos-events-worker",
    }
