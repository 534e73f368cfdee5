"""What the current code works for: the request and the trace whose ids go into envelopes."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from uuid_utils.compat import uuid7

_WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")

_origin: ContextVar[tuple[str, str]] = ContextVar("cos_events_origin", default=("", ""))


def current_request_id() -> str:
    """The id of the request that caused what happens here; empty outside of any."""
    return _origin.get()[0]


def current_trace_id() -> str:
    """The trace of the event that is being handled here; empty outside of a handler."""
    return _origin.get()[1]


@contextmanager
def request(request_id: str, trace_id: str = "") -> Iterator[None]:
    """What happens inside belongs to this request: `record_event` and `log_l1` take its id.

    Args:
        request_id: of the request.
        trace_id: for what belongs to no trace of its own.
    """
    token = _origin.set((request_id, trace_id))
    try:
        yield
    finally:
        _origin.reset(token)


def request_id_from(given: str | None) -> str:
    """The given id if it is well formed, otherwise a new, time-ordered one.

    Well formed is 1 to 128 letters, digits and `._:/+=-`, beginning with a letter or digit: what a
    log line and a header can carry unchanged.
    """
    if given is not None and _WELL_FORMED.fullmatch(given):
        return given
    return uuid7().hex


class RequestIdFilter(logging.Filter):
    """Gives each log record the attribute `request_id`, `-` outside of a request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through."""
        record.request_id = current_request_id() or "-"
        return True
