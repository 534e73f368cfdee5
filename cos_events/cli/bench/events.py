"""The events of a run: L1 records with a number, and an outbox filled without an application."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

TEXT = "x" * 200
"""An event's message: about as much as a log line."""

_RECORD = text("""
    INSERT INTO cos_events.outbox (event_id, source_module, event_type, envelope)
    SELECT id, :module, 'event_log', json_build_object(
        'base_log_id', id, 'source_module', :module, 'timestamp', '2026-01-01T00:00:00.000000Z',
        'trace_id', 't', 'request_id', 'r', 'event_type', 'event_log', 'data', json_build_object(
            'level', 'INFO', 'component', 'bench', 'message', :text,
            'attributes', json_build_object('n', n)))::text
    FROM (
        SELECT gen_random_uuid() AS id, n FROM generate_series(:first, :first + :count - 1) AS n
    ) AS made
""")


def data_of(number: int) -> dict[str, Any]:
    """What an application logs as event number `number`."""
    return {"level": "INFO", "component": "bench", "message": TEXT, "n": number}


def number_of(data: Any) -> int:
    """The number of an event with this data."""
    return int(data["attributes"]["n"])


def fill_outbox(connection: Connection, module: str, first: int, count: int) -> None:
    """Record events numbered from `first`, in the connection's transaction, without L1 rows."""
    connection.execute(_RECORD, {"module": module, "first": first, "count": count, "text": TEXT})
