"""`log_l1` on a real database: the record and its event, or neither."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select
from sqlalchemy.orm import Session

from cos_events import InvalidPayload, capture, log_l1, record_event
from cos_events.l1.models import BaseLog, EventLog, PromptTrace
from cos_events.store import writing
from cos_events.store.models import OutboxRow

PROMPT = {
    "prompt": "Why?",
    "response": "Because.",
    "model": "m1",
    "tokens_in": 3,
    "tokens_out": 2**40,
    "latency_ms": 12.5,
}
LOG = {"level": "info", "component": "nova", "message": "started"}
TABLES = [BaseLog, PromptTrace, EventLog, OutboxRow]


@pytest.fixture
def session(database: Engine, monkeypatch) -> Iterator[Session]:
    monkeypatch.setattr(capture, "wake", lambda ids, modules: None)
    with Session(database) as opened:
        yield opened


def counts(session: Session) -> list[int]:
    return [session.scalar(select(func.count()).select_from(each)) or 0 for each in TABLES]


def test_a_prompt_trace_is_written_with_its_event_and_returns_their_id(session, database) -> None:
    record_id = log_l1(session, "prompt_trace", PROMPT, trace_id="t", request_id="r")
    session.flush()
    with Session(database) as other:
        assert counts(other) == [0, 0, 0, 0]
    session.commit()
    assert counts(session) == [1, 1, 0, 1]
    base_log = session.get_one(BaseLog, record_id)
    trace = session.get_one(PromptTrace, record_id)
    assert (base_log.source_module, base_log.event_type) == ("cc", "prompt_trace")
    assert (base_log.trace_id, base_log.request_id) == ("t", "r")
    assert {name: getattr(trace, name) for name in PROMPT} == PROMPT
    assert trace.attributes == {}
    assert base_log.prompt_trace is trace
    envelope = json.loads(session.scalars(select(OutboxRow.envelope)).one())
    assert envelope["base_log_id"] == str(record_id)
    assert envelope["event_type"] == "prompt_trace"
    assert envelope["data"] == {**PROMPT, "attributes": {}}


def test_an_event_log_keeps_what_else_there_is_to_say_as_attributes(session) -> None:
    record_id = log_l1(session, "event_log", {**LOG, "pid": 7, "attributes": {"node": "ö"}})
    session.commit()
    row = session.get_one(EventLog, record_id)
    assert (row.level, row.component, row.message) == ("info", "nova", "started")
    assert row.attributes == {"pid": 7, "node": "ö"}
    envelope = json.loads(session.scalars(select(OutboxRow.envelope)).one())
    assert envelope["data"] == {**LOG, "attributes": {"pid": 7, "node": "ö"}}
    assert counts(session) == [1, 0, 1, 1]


def test_all_that_one_flush_writes_is_one_statement_in_the_order_of_recording(
    session, database
) -> None:
    statements: list[str] = []
    event.listen(database, "before_cursor_execute", lambda *given: statements.append(given[2]))
    recorded = [
        log_l1(session, "event_log", LOG),
        record_event(session, "happened", {}),
        log_l1(session, "prompt_trace", PROMPT),
        log_l1(session, "event_log", LOG),
    ]
    session.commit()
    assert len(statements) == 1
    assert counts(session) == [3, 1, 2, 4]
    in_order = select(OutboxRow.event_id).order_by(OutboxRow.id)
    assert list(session.scalars(in_order)) == recorded


@pytest.mark.parametrize("limit", ["MAX_ROWS", "MAX_CHARACTERS"])
def test_what_is_too_much_for_one_statement_goes_in_several(
    session, database, monkeypatch, limit
) -> None:
    statements: list[str] = []
    event.listen(database, "before_cursor_execute", lambda *given: statements.append(given[2]))
    recorded = [log_l1(session, "event_log", LOG) for _ in range(5)]
    size = len(session.new.pop().envelope)
    monkeypatch.setattr(writing, limit, {"MAX_ROWS": 2, "MAX_CHARACTERS": 2 * size}[limit])
    session.commit()
    assert len(statements) == 3
    assert counts(session) == [5, 0, 5, 5]
    in_order = select(OutboxRow.event_id).order_by(OutboxRow.id)
    assert list(session.scalars(in_order)) == recorded


def test_a_rollback_leaves_neither_record_nor_event(session) -> None:
    log_l1(session, "event_log", LOG)
    session.flush()
    session.rollback()
    assert counts(session) == [0, 0, 0, 0]


@pytest.mark.parametrize(("kind", "data"), [("prompt_trace", PROMPT), ("event_log", LOG)])
def test_times_are_stored_aware_and_as_the_same_moment_in_utc(session, kind, data) -> None:
    moment = datetime(2025, 6, 18, 12, 30, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    record_id = log_l1(session, kind, data, occurred_at=moment)
    session.commit()
    stored = session.get_one(BaseLog, record_id)
    assert stored.occurred_at == moment
    assert stored.occurred_at.utcoffset() is not None
    assert stored.recorded_at.utcoffset() is not None
    envelope = json.loads(session.scalars(select(OutboxRow.envelope)).one())
    assert envelope["timestamp"] == "2025-06-18T10:30:00.123456Z"


def test_without_a_time_it_happened_now_and_in_utc(session) -> None:
    before = datetime.now(UTC)
    record_id = log_l1(session, "event_log", LOG)
    stored = session.get_one(BaseLog, record_id)
    assert before <= stored.occurred_at <= datetime.now(UTC)
    assert stored.occurred_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tokens_in": -1}, "tokens_in"),
        ({"tokens_out": -1}, "tokens_out"),
        ({"tokens_in": 2**63}, "tokens_in"),
        ({"tokens_in": 1.5}, "tokens_in"),
        ({"tokens_in": True}, "tokens_in"),
        ({"latency_ms": -0.1}, "latency_ms"),
        ({"latency_ms": float("nan")}, "latency_ms"),
        ({"latency_ms": 10**400}, "latency_ms"),
        ({"latency_ms": "3"}, "latency_ms"),
        ({"prompt": None}, "prompt"),
        ({"response": "\0"}, "response"),
        ({"model": "\ud800"}, "model"),
        ({"attributes": [1]}, "attributes"),
        ({"free": (1,)}, "attributes.free"),
        ({"free": {"a": float("nan")}}, "attributes.free.a"),
        ({"free": {"a": "\0"}}, "attributes.free.a"),
        ({"free\0": 1}, "attributes.free"),
        ({"free": "\ud800"}, "attributes"),
        ({5: 1}, "attributes.5"),
    ],
)
def test_a_wrong_field_is_named_before_anything_is_written(session, changes, field) -> None:
    with pytest.raises(InvalidPayload, match=f"data.{field}"):
        log_l1(session, "prompt_trace", {**PROMPT, **changes})
    assert not session.new
    assert counts(session) == [0, 0, 0, 0]


@pytest.mark.parametrize(("kind", "data"), [("prompt_trace", PROMPT), ("event_log", LOG)])
def test_every_missing_field_is_named(session, kind, data: dict[str, Any]) -> None:
    for field in data:
        rest = {name: value for name, value in data.items() if name != field}
        with pytest.raises(InvalidPayload, match=f"data.{field}: Field required"):
            log_l1(session, kind, rest)
    assert not session.new


@pytest.mark.parametrize("kind", ["other", "", "PROMPT_TRACE", None, ["event_log"]])
def test_another_event_type_is_refused(session, kind) -> None:
    with pytest.raises(InvalidPayload, match="event_type: .* is not prompt_trace or event_log"):
        log_l1(session, kind, LOG)
    assert not session.new


def test_a_naive_time_is_refused(session) -> None:
    with pytest.raises(InvalidPayload, match="timestamp: .*timezone"):
        log_l1(session, "event_log", LOG, occurred_at=datetime(2025, 6, 18))  # noqa: DTZ001
    assert not session.new


def test_a_record_that_is_too_large_is_refused_before_anything_is_written(session) -> None:
    with pytest.raises(InvalidPayload, match=r"largest field is data\.response"):
        log_l1(session, "prompt_trace", {**PROMPT, "response": "x" * 300_000})
    assert not session.new
    assert counts(session) == [0, 0, 0, 0]
