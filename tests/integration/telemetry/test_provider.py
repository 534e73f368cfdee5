"""Where a process of the bus sends its traces: as the environment says, and nowhere otherwise."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Collector

ROOT = Path(__file__).parents[3]
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SCRIPT = """
import os, sys
from cos_events import telemetry
from cos_events.telemetry import names, tracing
telemetry.load()
if (child := os.fork()) == 0:
    telemetry.configure("worker")
    with telemetry.span(names.ATTEMPT, "in_a_child", traceparent=sys.argv[1]):
        pass
    telemetry.flush()
    os._exit(0)
os.waitpid(child, 0)
telemetry.configure("worker")
with telemetry.span(names.RECORD, traceparent=sys.argv[1]) as span:
    pass
print(tracing.tracing(), span.traceparent)
telemetry.flush()
"""
LAST_WORDS = """
import atexit, time
def say(): print(time.monotonic() - begun)
atexit.register(say)  # handlers run last in, first out: after the provider's
from cos_events import telemetry
from cos_events.telemetry import names
telemetry.configure("worker")
telemetry.start(names.COMMIT).end()
begun = time.monotonic()
telemetry.flush()
say()
"""
NOBODY = (
    "LOGFIRE_TOKEN",
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_SERVICE_NAME",
)


def run(tmp_path: Path, script: str = SCRIPT, **variables: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if name not in NOBODY}
    done = subprocess.run(
        [sys.executable, "-c", script, CALLER],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("logfire", [False, True], ids=["a collector", "Logfire"])
def test_spans_go_where_the_environment_says_those_of_a_forked_child_too(
    collector: Collector, tmp_path: Path, logfire: bool
) -> None:
    if logfire:
        to, service = {"LOGFIRE_BASE_URL": collector.url, "LOGFIRE_TOKEN": "none"}, "mine"
        to["OTEL_SERVICE_NAME"] = service
    else:
        to, service = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}, "cos-events-worker"
    assert run(tmp_path, **to)[0] == "True"
    assert {each.service for each in collector.spans()} == {service}
    for each in (collector.one("record"), collector.one("attempt in_a_child")):
        assert [each.trace_id, each.parent_id] == CALLER.split("-")[1:3]


@pytest.mark.parametrize("listens", [True, False], ids=["is silent", "refuses"])
def test_a_process_ends_soon_though_its_collector(tmp_path: Path, listens: bool) -> None:
    with socket.socket() as collector:
        collector.bind(("127.0.0.1", 0))
        if listens:
            collector.listen()
        url = f"http://127.0.0.1:{collector.getsockname()[1]}"
        flushed, ended = map(float, run(tmp_path, LAST_WORDS, OTEL_EXPORTER_OTLP_ENDPOINT=url))
    assert flushed < 4, "two seconds are allowed"
    assert ended < 9, "and five for the exporter's last batch"


def test_traces_that_are_switched_off_go_nowhere(collector: Collector, tmp_path: Path) -> None:
    to = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SDK_DISABLED": "true"}
    assert run(tmp_path, **to) == ["False", CALLER]
    assert collector.spans() == []


def test_to_have_a_look_they_go_to_the_console(collector: Collector, tmp_path: Path) -> None:
    to = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_EXPORTER": "console"}
    said = run(tmp_path, **to)
    assert '"record",' in said
    assert CALLER.split("-")[1] in " ".join(said)
    assert collector.spans() == []


def test_or_nowhere(collector: Collector, tmp_path: Path) -> None:
    to = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_EXPORTER": "none"}
    assert run(tmp_path, **to) == ["False", CALLER]
    assert collector.spans() == []


def test_the_provider_of_the_application_stays(collector: Collector, tmp_path: Path) -> None:
    own = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from cos_events import telemetry
trace.set_tracer_provider(own := TracerProvider())
telemetry.configure("worker")
print(trace.get_tracer_provider() is own)
"""
    assert run(tmp_path, own, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) == ["True"]


def test_the_bus_works_without_the_extras(collector: Collector, tmp_path: Path) -> None:
    without = """
import sys
for extra in ("opentelemetry", "logfire", "prometheus_client"):
    sys.modules[extra] = None
"""
    more = """
telemetry.count(names.PUBLISHED, "cc")
import cos_events.app
from cos_events import metrics
try:
    metrics.render()
except Exception as error:
    print(error)
"""
    said = run(tmp_path, without + SCRIPT + more, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert said[:2] == ["False", CALLER]
    assert " ".join(said[2:]) == "metrics need prometheus-client: pip install 'cos-events[metrics]'"
