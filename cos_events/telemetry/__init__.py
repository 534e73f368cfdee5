"""What the bus says about itself: traces, counts, and the names of both.

Everything here is safe to call without the extras `telemetry` and `metrics`: it then does nothing.
"""

from cos_events.telemetry.counters import SHARED, count, observe, share_counts, show
from cos_events.telemetry.in_hand import TRACEPARENTS, consuming, in_hand
from cos_events.telemetry.provider import configure, flush, load
from cos_events.telemetry.requests import TraceRequests
from cos_events.telemetry.sql import trace_statements
from cos_events.telemetry.tracing import (
    TRACEPARENT,
    Span,
    current_trace_id,
    current_traceparent,
    span,
    spans_for,
    start,
)

__all__ = [
    "SHARED",
    "TRACEPARENT",
    "TRACEPARENTS",
    "Span",
    "TraceRequests",
    "configure",
    "consuming",
    "count",
    "current_trace_id",
    "current_traceparent",
    "flush",
    "in_hand",
    "load",
    "observe",
    "share_counts",
    "show",
    "span",
    "spans_for",
    "start",
    "trace_statements",
]
