"""The events of a run: L1 records with a number, and an outbox filled without an application."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text
from uuid_utils.compat import uuid7

TEXT = "x" * 200
"""An event's message: about as much as a log line."""

_RECORD = text("""
    INSERT INTO cos_events.outbox (event_id, source_module, event_type, envelope)
    SELECT id, :module, 'event_log', json_build_object(
        'base_log_id', id, 'source_module', :module, 'timestamp', '2026-01-01T00:00:00.000000Z',
        'trace_id', 't', 'request_id', 'r', 'event_type', 'event_log', 'data', json_build_object(
            'level', 'INFO', 'component', 'bench', 'message', :text,
            'attributes', json_build_object('n', n)))::text
    FROM unnest(CAST(:ids AS uuid[]), CAST(:numbers AS int[])) AS made (id, n)
""")


def data_of(number: int) -> dict[str, Any]:
    """What an application logs as event number `number`."""
    return {"level": "INFO", "component": "bench", "message": TEXT, "n": number}


def number_of(data: Any) -> int:
    """The number of an event with this data."""
    return int(data["attributes"]["n"])


def fill_outbox(connection: Connection, module: str, first: int, count: int) -> None:
    """Record events numbered from `first`, in the connection's transaction, without L1 rows."""
    # Time-ordered, as `record_event` makes them: PostgreSQL's indexes feel the difference.
    numbers = list(range(first, first + count))
    ids = [uuid7() for _ in numbers]
    connection.execute(_RECORD, {"module": module, "ids": ids, "numbers": numbers, "text": TEXT})
