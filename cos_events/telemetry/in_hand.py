"""The envelopes that a worker is handling, and the trace to which each belongs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from cos_events.settings import get_settings
from cos_events.telemetry.names import CONSUME, CONTENT, OUTCOME
from cos_events.telemetry.tracing import TRACEPARENT, Span, spans_for

TRACEPARENTS = "traceparents"
"""The header of a task made of several messages: the trace context of each, in their order."""

_in_hand: ContextVar[Mapping[str, Span] | None] = ContextVar("cos_events.in_hand", default=None)


@contextmanager
def consuming(subscription: str, raws: Sequence[str], headers: Any) -> Iterator[None]:
    """Time the delivery of these envelopes, each in the trace that it came with.

    Args:
        subscription: whose.
        raws: the envelopes as they travelled.
        headers: of the task's message: whatever has a `get`.
    """
    carried = _carried(headers, len(raws))
    with spans_for(CONSUME, subscription, carried) as spans:
        by_raw = {raw: spans[its] for raw, its in zip(raws, carried, strict=True)}
        if get_settings().trace_content:
            for each in spans.values():
                each.set({CONTENT: [raw for raw, its in by_raw.items() if its is each]})
        token = _in_hand.set(by_raw)
        try:
            yield
        finally:
            _in_hand.reset(token)
        for each in spans.values():
            if not each.failed:
                each.set({OUTCOME: "delivered"})


def in_hand(raw: str) -> Span:
    """The span of an envelope that is being delivered."""
    return (_in_hand.get() or {}).get(raw) or Span()


def _carried(headers: Any, count: int) -> list[str | None]:
    # Whatever the message contains: it may come from anyone.
    many = headers.get(TRACEPARENTS)
    carried = many if isinstance(many, list) else [headers.get(TRACEPARENT)] * count
    if len(carried) != count:
        return [None] * count
    return [each if isinstance(each, str) else None for each in carried]
