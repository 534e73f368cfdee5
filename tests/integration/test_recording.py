"""Recording on a real database: in the caller's transaction, or refused before any write."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from cos_events import InvalidPayload, capture, log_l1, record_event
from cos_events.l1.models import EventLog
from cos_events.store.models import OutboxRow

LOG = {"level": "info", "component": "nova", "message": "started"}


@pytest.fixture
def session(database: Engine, monkeypatch) -> Iterator[Session]:
    monkeypatch.setattr(capture, "wake", lambda ids: None)
    with Session(database) as opened:
        yield opened


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def refusal(session: Session, data: dict[Any, Any], **fields: Any) -> str:
    """Why it is refused; and nothing was written."""
    with pytest.raises(InvalidPayload) as refused:
        record_event(session, "happened", data, **fields)
    assert not session.new
    assert session.scalar(select(func.count()).select_from(OutboxRow)) == 0
    return str(refused.value)


def test_an_event_is_one_row_of_the_callers_transaction(session, database) -> None:
    event_id = record_event(session, "happened", {"a": [1, None]})
    session.flush()
    with database.connect() as other:
        assert other.scalar(select(func.count()).select_from(OutboxRow)) == 0
    session.commit()
    row = session.scalars(select(OutboxRow)).one()
    assert (row.event_id, row.source_module, row.event_type) == (event_id, "cc", "happened")
    assert row.published_at is None
    assert row.recorded_at.tzinfo is not None
    assert json.loads(row.envelope)["base_log_id"] == str(event_id)
    assert json.loads(row.envelope)["data"] == {"a": [1, None]}


def test_recording_neither_flushes_nor_commits(session) -> None:
    record_event(session, "happened", {})
    assert [type(row) for row in session.new] == [OutboxRow]
    session.rollback()
    assert session.scalar(select(func.count()).select_from(OutboxRow)) == 0


def test_what_is_left_out_is_filled_in(session, environment) -> None:
    environment(COS_EVENTS_MODULE="pem")
    before = datetime.now(UTC)
    event_id = record_event(session, "happened", {})
    session.flush()
    envelope = json.loads(session.scalars(select(OutboxRow.envelope)).one())
    assert event_id.version == 7
    assert envelope["source_module"] == "pem"
    assert envelope["request_id"] == ""
    assert UUID(envelope["trace_id"])
    assert before <= datetime.fromisoformat(envelope["timestamp"]) <= datetime.now(UTC)


def test_what_is_given_is_kept(session) -> None:
    given = uuid4()
    moment = datetime(2025, 6, 18, 12, 30, tzinfo=timezone(timedelta(hours=2)))
    returned = record_event(
        session,
        "happened",
        {},
        base_log_id=given,
        module="aic",
        timestamp=moment,
        trace_id="trace",
        request_id="request",
    )
    session.flush()
    assert returned == given
    assert json.loads(session.scalars(select(OutboxRow.envelope)).one()) == {
        "base_log_id": str(given),
        "source_module": "aic",
        "timestamp": "2025-06-18T10:30:00.000000Z",
        "trace_id": "trace",
        "request_id": "request",
        "event_type": "happened",
        "data": {},
    }


def test_what_the_caller_changes_afterwards_is_not_recorded(session) -> None:
    data = {**LOG, "free": {"a": [1]}}
    log_l1(session, "event_log", data)
    data["free"]["a"].append(2)
    session.commit()
    assert session.scalars(select(EventLog)).one().attributes == {"free": {"a": [1]}}
    assert '"a":[1]' in session.scalars(select(OutboxRow.envelope)).one()


@pytest.mark.parametrize("data", [None, [1], "text", 7])
def test_data_that_is_no_mapping_is_refused(session, data) -> None:
    with pytest.raises(InvalidPayload, match=f"must be a mapping, not {type(data).__name__}"):
        record_event(session, "order_placed", data)
    with pytest.raises(InvalidPayload, match=f"must be a mapping, not {type(data).__name__}"):
        log_l1(session, "event_log", data)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (float("nan"), "data.field"),
        (float("inf"), "data.field"),
        ({"a": [1, float("nan")]}, "data.field.a.1"),
        ((1, 2), "data.field"),
        ([1, (2,)], "data.field.1"),
        ({1, 2}, "data.field"),
        (datetime.now(UTC), "data.field"),
        (b"bytes", "data.field"),
        (object(), "data.field"),
        ({"a": {3: 1}}, "data.field.a.3"),
        ("\ud800", "data.field"),
        ({"a": ["\ud800"]}, "data.field"),
        ({"\ud800": 1}, "data.field"),
        ("a\0b", "data.field"),
        ({"a": [0, "\0"]}, "data.field.a.1"),
        ({"a": {"k\0": 1}}, "data.field.a.k"),
        pytest.param(10**5_000, "data.field", id="5,000 digits"),
        pytest.param(nested(250), "data.field", id="deep"),
        pytest.param(nested(2_000), "data.field", id="very deep"),
    ],
)
def test_what_is_no_json_is_refused_with_the_fields_name(session, value, field) -> None:
    assert field in refusal(session, {"fine": 1, "field": value})


@pytest.mark.parametrize("key", [1, None, (1,), "\ud800", "a\0"])
def test_a_key_that_is_no_text_is_refused(session, key) -> None:
    assert "cannot record this event: data" in refusal(session, {key: 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base_log_id", "0197812c-0000-7000-8000-000000000001"),
        ("timestamp", datetime(2025, 6, 18)),  # noqa: DTZ001 - that is what is refused
        ("timestamp", datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))),
        ("timestamp", "2025-06-18"),
        ("trace_id", 7),
        ("trace_id", "\0"),
        ("request_id", "\ud800"),
        ("request_id", "\0"),
    ],
)
def test_a_wrong_field_beside_the_data_is_named(session, name, value) -> None:
    assert f"event: {name}" in refusal(session, {"fine": 1}, **{name: value})


@pytest.mark.parametrize("event_type", ["", "Prompt", "a b", 7, None])
def test_a_wrong_event_type_is_quoted_with_what_is_allowed(session, event_type) -> None:
    with pytest.raises(InvalidPayload) as refused:
        record_event(session, event_type, {})
    assert f"event: {event_type!r} cannot name an event type: use a lower-case" in str(
        refused.value
    )
    assert not session.new


@pytest.mark.parametrize("module", ["C C", 7])
def test_so_is_a_wrong_module(session, module) -> None:
    sentence = f"event: {module!r} cannot name a module: use a lower-case letter"
    assert sentence in refusal(session, {}, module=module)


def test_of_a_wrong_name_only_the_beginning_is_quoted(session) -> None:
    assert len(refusal(session, {}, module="x" * 10_000)) < 250


def test_a_text_that_only_looks_like_a_nul_is_kept(session) -> None:
    log_l1(session, "event_log", {**LOG, "free": r"\u0000"})
    session.commit()
    assert session.scalars(select(EventLog)).one().attributes == {"free": r"\u0000"}


def test_what_is_too_large_is_refused_and_the_largest_field_named(session) -> None:
    message = refusal(session, {"small": "x" * 1_000, "large": "x" * 300_000})
    assert "262,144" in message
    assert "its largest field is data.large" in message
    assert "COS_EVENTS_MAX_PAYLOAD_BYTES" in message


def test_the_largest_field_is_the_one_of_most_bytes(session) -> None:
    assert "data.umlauts" in refusal(session, {"latin": "x" * 150_000, "umlauts": "ö" * 140_000})


def test_a_field_beside_the_data_may_be_the_largest(session) -> None:
    assert "request_id" in refusal(session, {}, request_id="x" * 300_000)
    assert "trace_id" in refusal(session, {"a": 1}, trace_id="x" * 300_000)


def test_the_limit_is_a_setting_and_counts_the_whole_envelope_in_bytes(
    session, environment
) -> None:
    environment(COS_EVENTS_MAX_PAYLOAD_BYTES="2048")
    record_event(session, "happened", {"a": ""})
    session.flush()
    room = 2048 - len(session.scalars(select(OutboxRow.envelope)).one())
    record_event(session, "happened", {"a": "x" * room})
    session.rollback()
    assert "2,049 bytes, more than 2,048" in refusal(session, {"a": "x" * (room + 1)})
    assert "more than 2,048" in refusal(session, {"a": "ö" * (room // 2 + 1)})
