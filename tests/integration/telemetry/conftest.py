"""Spans kept in memory, and a trace printed as a tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cos_events.telemetry import names


class Traces:
    """What this process has traced."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """Those whose name begins so, in the order in which they began."""
        found = [each for each in self._exporter.get_finished_spans() if each.name.startswith(name)]
        return sorted(found, key=lambda each: each.start_time or 0)

    def one(self, name: str) -> ReadableSpan:
        (found,) = self.spans(name)
        return found

    def tree(self, trace_id: int | None = None) -> str:
        """One trace, or all, a line a span."""
        wanted = [s for s in self.spans() if trace_id in (None, s.context.trace_id)]
        return "\n".join(_lines(wanted, None, ""))


def _lines(spans: Sequence[ReadableSpan], parent: int | None, indent: str) -> Iterator[str]:
    known = {span.context.span_id for span in spans}
    for span in spans:
        its = span.parent.span_id if span.parent and span.parent.span_id in known else None
        if its == parent:
            yield f"{indent}{span.name}{_outcome(span)}"
            yield from _lines(spans, span.context.span_id, indent + "  ")


def _outcome(span: ReadableSpan) -> str:
    attributes: Any = span.attributes or {}
    told = attributes.get(names.ERROR_TYPE) or attributes.get(names.OUTCOME)
    return f": {told}" if told else ""


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Traces:
    """This process traces."""
    made = Traces()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", made.provider)
    return made
