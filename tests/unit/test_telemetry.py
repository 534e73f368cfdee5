"""Traces and counts that nobody asked for, or that cannot be taken, get in nobody's way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from cos_events import telemetry
from cos_events.telemetry import names

ROOT = Path(__file__).parents[2]
CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("headers", "carried"),
    [
        ({}, None),
        ({"traceparent": CONTEXT}, CONTEXT),
        ({"traceparents": [CONTEXT]}, CONTEXT),
        ({"traceparent": 7}, None),
        ({"traceparents": [7]}, None),
        ({"traceparents": []}, None),
        ({"traceparents": [CONTEXT, CONTEXT]}, None),
        ({"traceparents": {"0": CONTEXT}}, None),
    ],
)
def test_a_context_is_taken_from_a_message_whatever_that_says(headers, carried) -> None:
    with telemetry.consuming("mailer", ["raw"], headers):
        assert telemetry.in_hand("raw").traceparent == carried
    assert telemetry.in_hand("raw").traceparent is None


def test_a_retry_hands_its_own_context_on() -> None:
    with telemetry.consuming("mailer", ["raw"], {"traceparent": CONTEXT}):
        assert telemetry.in_hand("raw").traceparent == CONTEXT


def test_outside_of_a_trace_there_is_none() -> None:
    assert telemetry.current_trace_id() is None
    assert telemetry.current_traceparent() is None
    with telemetry.span(names.ATTEMPT, "mailer") as span:
        span.set({names.REASON: "x"})
        assert span.traceparent is None


def test_what_cannot_be_counted_is_said_once_and_hurts_nobody(monkeypatch, caplog) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("cos_events.telemetry.counters._made", full)
    telemetry.count(names.PUBLISHED, "full")
    telemetry.count(names.PUBLISHED, "full")
    telemetry.observe(names.PUBLISH_LATENCY, "full", seconds=[1.0])
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "cos_events_published_total cannot be counted: No space left on device",
        "cos_events_publish_latency_seconds cannot be counted: No space left on device",
    ]


def test_counts_are_in_the_registry_that_applications_show() -> None:
    telemetry.count(names.RETRIED, "unit", "mailer")
    telemetry.count(names.RETRIED, "unit", "mailer", by=2)
    labels = {"module": "unit", "subscription": "mailer"}
    assert REGISTRY.get_sample_value("cos_events_retried_total", labels) == 3


def test_the_page_lists_every_name() -> None:
    page = (ROOT / "docs/telemetry.md").read_text()
    listed = set(re.findall(r"`(cos_events_\w+)`", page))
    assert {metric.name for metric in names.METRICS} == listed
    spans = [each for each in vars(names).values() if isinstance(each, names.SpanName)]
    for span in spans:
        assert re.search(rf"`{span.name}\b", page), span.name
    attributes = {
        value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)
    }
    assert attributes <= set(re.findall(r"`([\w.]+)`", page))


def test_the_table_names_each_logger() -> None:
    speaking = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in (ROOT / "cos_events").rglob("*.py")
        if "logging.getLogger(__name__)" in file.read_text()
    }
    assert set(names.LOGGERS) == speaking
