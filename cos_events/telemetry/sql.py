"""Spans of SQL statements, inside other spans only.

OpenTelemetry's own instrumentation of SQLAlchemy refuses 2.1, times every engine in the process and
every poll of the relay, and puts PostgreSQL's error text, which quotes values, into its spans.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from cos_events.settings import get_settings
from cos_events.telemetry.names import SQLSTATE, STATEMENT, SpanName
from cos_events.telemetry.tracing import Span, in_span, start

_VERB = re.compile(r"\b(?:SELECT|INSERT|UPDATE|DELETE)\b", re.IGNORECASE)
_TABLE = re.compile(r"\b(?:INTO|FROM|UPDATE|JOIN)\s+([\w.]+)", re.IGNORECASE)


def trace_statements(engine: Engine) -> Engine:
    """Time each statement that this engine executes within a span; returns the engine."""
    event.listen(engine, "before_cursor_execute", _before)
    event.listen(engine, "after_cursor_execute", _after)
    event.listen(engine, "handle_error", _failed)
    return engine


def _before(
    _connection: Any, _cursor: Any, statement: str, _values: Any, run: Any, _many: Any
) -> None:
    if in_span():
        attributes = {STATEMENT: statement} if get_settings().trace_content else None
        run.cos_events_span = start(SpanName(_summary(statement), "client"), "", attributes)


def _after(
    _connection: Any, _cursor: Any, _statement: str, _values: Any, run: Any, _many: Any
) -> None:
    span: Span | None = run.__dict__.pop("cos_events_span", None)
    if span is not None:
        span.end()


def _failed(failure: ExceptionContext) -> None:
    run: Any = failure.execution_context
    span: Span | None = run.__dict__.pop("cos_events_span", None) if run else None
    if span is not None:
        span.set({SQLSTATE: getattr(failure.original_exception, "pgcode", None) or ""})
        span.fail(failure.original_exception)
        span.end()


def _summary(statement: str) -> str:
    """Its first word, or that after WITH, and the first table that it names: never a value."""
    verb = statement.split(maxsplit=1)[0].upper()
    if verb == "WITH" and (found := _VERB.search(statement)):
        verb = found[0].upper()
    table = _TABLE.search(statement)
    return f"{verb} {table[1]}" if table else verb
