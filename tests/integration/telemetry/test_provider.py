"""Where a process of the bus sends its traces: as the environment says, and nowhere otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Collector

ROOT = Path(__file__).parents[3]
SCRIPT = """
import os, sys
from cos_events import telemetry
from cos_events.telemetry import names, tracing
telemetry.configure("worker")
with telemetry.span(names.RECORD) as span:
    pass
if (child := os.fork()) == 0:
    telemetry.configure("worker")
    with telemetry.span(names.ATTEMPT, "in_a_child", traceparent=span.traceparent):
        pass
    telemetry.flush()
    os._exit(0)
os.waitpid(child, 0)
print(tracing.tracing(), span.traceparent)
telemetry.flush()
"""
NOBODY = ("LOGFIRE_TOKEN", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME")


def run(tmp_path: Path, script: str = SCRIPT, **variables: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if name not in NOBODY}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("to", ["a collector", "Logfire", "both"])
def test_spans_go_where_the_environment_says_those_of_a_forked_child_too(
    collector: Collector, tmp_path: Path, to: str
) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} if to != "Logfire" else {}
    if to != "a collector":
        variables |= {"LOGFIRE_TOKEN": "no-account", "LOGFIRE_BASE_URL": collector.url}
    traces, _ = run(tmp_path, **variables)
    assert traces == "True"
    assert {each.service for each in collector.spans()} == {"cos-events-worker"}
    child, parent = collector.spans("attempt in_a_child"), collector.spans("record")
    assert (len(child), len(parent)) == ((2, 2) if to == "both" else (1, 1))
    assert {each.parent_id for each in child} == {each.span_id for each in parent}


def test_the_service_may_be_named(collector: Collector, tmp_path: Path) -> None:
    run(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME="mine")
    assert {each.service for each in collector.spans()} == {"mine"}


@pytest.mark.parametrize("disabled", [{}, {"OTEL_SDK_DISABLED": "true"}])
def test_nobody_traces_unless_somebody_asked(
    collector: Collector, tmp_path: Path, disabled: dict[str, str]
) -> None:
    variables = {**disabled, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} if disabled else {}
    assert run(tmp_path, **variables) == ["False", "None"]
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


@pytest.mark.parametrize("missing", ["opentelemetry", "logfire", "prometheus_client"])
def test_the_bus_works_without_the_extras(tmp_path: Path, missing: str) -> None:
    blocked = f"import sys; sys.modules[{missing!r}] = None\n"
    more = "telemetry.count(names.PUBLISHED, 'cc'); import cos_events.app, cos_events.metrics\n"
    assert run(tmp_path, blocked + SCRIPT + more)[0] == "False"
