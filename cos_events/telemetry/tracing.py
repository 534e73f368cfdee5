"""Spans, by the plain OpenTelemetry API; almost nothing if nobody has asked for traces.

A process traces if it has a tracer provider: its own, or that of `configure`. One that does not
trace still passes an event's trace context on, so that it breaks nobody else's trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

try:
    from opentelemetry import context, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    _INSTALLED = False
else:
    _INSTALLED = True

from cos_events.settings import get_settings
from cos_events.telemetry.names import COUNT, ERROR_TYPE, OUTCOME, SpanName

TRACEPARENT = "traceparent"
"""The header with an event's W3C trace context."""


MAX_FAILED = 10
"""The most spans that are kept for a piece of work that failed for several traces."""


def tracing() -> bool:
    """Whether this process traces."""
    return _INSTALLED and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


class Span:
    """Stands in for a span if nothing is traced; only passes on the trace context that came.

    Attributes:
        failed: whether `fail` was called.
    """

    def __init__(self, traceparent: str | None = None) -> None:
        self._traceparent = traceparent
        self.failed = False

    @property
    def traceparent(self) -> str | None:
        """The trace context for what it causes; None outside of any trace."""
        return self._traceparent

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Say more about it; names are the constants of `names`."""

    def rename(self, name: str) -> None:
        """Rename it, now that more is known."""

    def fail(self, error: BaseException | str) -> None:  # noqa: ARG002 - the traced one looks at it
        """It failed, by an exception, or an error of this kind.

        An exception's text is kept only with `COS_EVENTS_TRACE_CONTENT`.
        """
        self.failed = True

    def end(self) -> None:
        """It is over."""

    def current(self) -> AbstractContextManager[object]:
        """Make it the parent of what follows, within a `with`; does not end it."""
        return nullcontext()


class _Traced(Span):
    """A span of OpenTelemetry."""

    def __init__(self, span: trace.Span) -> None:
        super().__init__()
        self._span = span

    @property
    def traceparent(self) -> str | None:
        return _format(self._span.get_span_context())

    def set(self, attributes: Mapping[str, Any]) -> None:
        self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, error: BaseException | str) -> None:
        self.failed = True
        kind = error if isinstance(error, str) else type(error).__name__
        self._span.set_attributes({OUTCOME: "failed", ERROR_TYPE: kind})
        self._span.set_status(trace.StatusCode.ERROR)
        if isinstance(error, BaseException) and get_settings().trace_content:
            self._span.record_exception(error)

    def end(self) -> None:
        self._span.end()

    def current(self) -> AbstractContextManager[object]:
        return trace.use_span(self._span, record_exception=False, set_status_on_exception=False)

    def link(self) -> trace.Link:
        return trace.Link(self._span.get_span_context())


_merged: ContextVar[Sequence[_Traced]] = ContextVar("cos_events.merged", default=())
"""Spans of several traces whose work is being done together."""


def in_span() -> bool:
    """Whether a span is being recorded right now."""
    return _INSTALLED and trace.get_current_span().is_recording()


def current_trace_id() -> str | None:
    """The current trace, as 32 hexadecimal digits; None outside of any."""
    if not _INSTALLED:
        return None
    current = trace.get_current_span().get_span_context()
    return f"{current.trace_id:032x}" if current.is_valid else None


def current_traceparent() -> str | None:
    """The current span, as a W3C trace context; None outside of any."""
    if not _INSTALLED:
        return None
    current = trace.get_current_span().get_span_context()
    return _format(current) if current.is_valid else None


def start(
    name: SpanName,
    subject: str = "",
    attributes: Mapping[str, Any] | None = None,
    traceparent: str | None = None,
) -> Span:
    """A span that begins now, is current nowhere, and lasts until its `end`.

    Args:
        name: which of the table's.
        subject: whose: the subscription.
        attributes: what is known of it.
        traceparent: the trace context of its parent; by default the current one. If there is none,
            but several traces are merged, it links to them.
    """
    if not tracing():
        return Span(traceparent)
    parent = _w3c.extract({TRACEPARENT: traceparent}) if traceparent else context.get_current()
    orphan = not trace.get_current_span(parent).get_span_context().is_valid
    return _Traced(
        _tracer().start_span(
            f"{name.name} {subject}" if subject else name.name,
            parent,
            trace.SpanKind[name.kind.upper()],
            attributes,
            [each.link() for each in _merged.get()] if orphan else None,
        )
    )


@contextmanager
def span(
    name: SpanName,
    subject: str = "",
    attributes: Mapping[str, Any] | None = None,
    traceparent: str | None = None,
) -> Iterator[Span]:
    """As `start`, for what happens within the `with`; an exception fails it."""
    begun = start(name, subject, attributes, traceparent)
    with begun.current():
        try:
            yield begun
        except BaseException as error:
            begun.fail(error)
            raise
        finally:
            begun.end()


@contextmanager
def spans_for(
    name: SpanName, subject: str, traceparents: Sequence[str | None]
) -> Iterator[Mapping[str | None, Span]]:
    """A span in each of these traces, for one piece of work that serves all of them.

    Within the `with` it is the current one if there is only one; otherwise what begins there stands
    by itself, and links to all of them. An exception fails those that have not failed; they are
    kept if they are few: a broker that is down refuses the same hundreds each second.

    Args:
        name: which of the table's.
        subject: whose: the subscription.
        traceparents: the trace context of each event; None for events outside of any.

    Yields:
        The span by trace context.
    """
    if not tracing():
        yield {each: Span(each) for each in traceparents}
        return
    counts = Counter(traceparents)
    spans = {each: start(name, subject, {COUNT: n}, each) for each, n in counts.items()}
    try:
        with _within(list(spans.values())):
            yield spans
    except BaseException as error:
        for each in list(spans.values())[:MAX_FAILED]:
            if not each.failed:
                each.fail(error)
            each.end()
        raise
    for each in spans.values():
        each.end()


@contextmanager
def _within(spans: Sequence[Span]) -> Iterator[None]:
    if len(spans) == 1:
        with spans[0].current():
            yield
        return
    merged = _merged.set([each for each in spans if isinstance(each, _Traced)])
    try:
        with trace.use_span(trace.INVALID_SPAN):
            yield
    finally:
        _merged.reset(merged)


if _INSTALLED:
    _w3c = TraceContextTextMapPropagator()
    _known: tuple[trace.TracerProvider, trace.Tracer] | None = None

    def _tracer() -> trace.Tracer:
        global _known  # noqa: PLW0603 - a provider costs more to ask than a span to begin
        provider = trace.get_tracer_provider()
        if _known is None or _known[0] is not provider:
            _known = provider, provider.get_tracer("cos_events")
        return _known[1]

    def _format(its: trace.SpanContext) -> str:
        return f"00-{its.trace_id:032x}-{its.span_id:016x}-{its.trace_flags:02x}"
