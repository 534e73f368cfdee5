"""Spans of this process kept in memory, those of others received, and a trace printed as a tree."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cos_events.telemetry import names


@dataclass(frozen=True)
class Traced:
    """A span as it is exported."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    links: tuple[str, ...]
    begun: int
    attributes: dict[str, Any]
    failed: bool
    sql: bool
    everything: str

    @property
    def told(self) -> str:
        """Its outcome, or what went wrong."""
        return str(self.attributes.get(names.ERROR_TYPE) or self.attributes.get(names.OUTCOME, ""))


class Traces:
    """Spans, in the order in which they began."""

    def spans(self, name: str = "") -> list[Traced]:
        """Those whose name begins so; not what Logfire says of a span that has only begun."""
        found = [
            each
            for each in decoded(self.exported())
            if each.name.startswith(name)
            and each.attributes.get("logfire.span_type") != "pending_span"
        ]
        return sorted(found, key=lambda each: each.begun)

    def exported(self) -> ExportTraceServiceRequest:
        raise NotImplementedError

    def one(self, name: str) -> Traced:
        (found,) = self.spans(name)
        return found

    def tree(self, called: Mapping[str, str] | None = None) -> str:
        """All traces, a line a span, brothers by name; without SQL.

        Args:
            called: by what to replace the names of subscriptions.
        """
        spans = [span for span in self.spans() if not span.sql]
        for name, other in (called or {}).items():
            spans = [replace(span, name=span.name.replace(name, other)) for span in spans]
        spans.sort(key=lambda each: each.name)
        return "".join(_lines(spans, "", ""))


def decoded(request: ExportTraceServiceRequest) -> Iterator[Traced]:
    """What a message of OTLP says."""
    for of_process in request.resource_spans:
        resource = _values(of_process.resource.attributes)
        for scope in of_process.scope_spans:
            for span in scope.spans:
                yield Traced(
                    service=resource.get("service.name", ""),
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    links=tuple(link.span_id.hex() for link in span.links),
                    begun=span.start_time_unix_nano,
                    attributes=_values(span.attributes),
                    failed=span.status.code == 2,
                    sql=span.kind == span.SPAN_KIND_CLIENT,
                    everything=str(span),
                )


def _values(pairs: Sequence[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None


def _lines(spans: Sequence[Traced], parent: str, indent: str) -> Iterator[str]:
    known = {span.span_id for span in spans}
    for span in spans:
        if (span.parent_id if span.parent_id in known else "") == parent:
            yield f"{indent}{span.name}{': ' if span.told else ''}{span.told}\n"
            yield from _lines(spans, span.span_id, indent + "  ")


class InMemory(Traces):
    """What this process has traced."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def exported(self) -> ExportTraceServiceRequest:
        return encode_spans(self._exporter.get_finished_spans())


class Collector(Traces):
    """What other processes have sent by OTLP over HTTP to `url`."""

    def __init__(self) -> None:
        self._received = ExportTraceServiceRequest()
        self._lock = threading.Lock()
        receive = self._receive

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path.endswith("/traces"):
                    receive(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def answer(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _receive(self, body: bytes) -> None:
        with self._lock:
            self._received.MergeFrom(ExportTraceServiceRequest.FromString(body))

    def exported(self) -> ExportTraceServiceRequest:
        with self._lock:
            copy = ExportTraceServiceRequest()
            copy.CopyFrom(self._received)
            return copy

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> InMemory:
    """This process traces."""
    made = InMemory()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", made.provider)
    return made


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Receives what other processes trace."""
    with Collector() as running:
        yield running
