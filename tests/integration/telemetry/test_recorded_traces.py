"""What is traced where events are recorded: requests, commits, and the context that goes along."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from cos_events import Envelope, InvalidPayload, log_l1, record_event
from cos_events.l1.lines import record_lines
from cos_events.store.models import OutboxRow
from cos_events.telemetry import TraceRequests, names

if TYPE_CHECKING:
    from conftest import InMemory

PROMPT = "words of a prompt"
EVENT_LOG = {"level": "info", "component": "shop", "message": "hello"}
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def outbox(database: Engine, woken: object) -> Callable[[], list[tuple[Envelope, str | None]]]:
    """Each recorded envelope with its trace context, oldest first."""

    def read() -> list[tuple[Envelope, str | None]]:
        with database.connect() as connection:
            rows = connection.execute(
                select(OutboxRow.envelope, OutboxRow.traceparent).order_by(OutboxRow.id)
            )
            return [(Envelope.decode(row.envelope), row.traceparent) for row in rows]

    return read


def test_an_event_belongs_to_the_current_trace_and_its_commit_is_a_span_of_it(
    traces: InMemory, database: Engine, outbox
) -> None:
    with traces.tracer.start_as_current_span("work"), Session(database) as session:
        record_event(session, "one", {})
        log_l1(session, "event_log", EVENT_LOG)
        session.commit()
    work, commit = traces.one("work"), traces.one("commit")
    assert commit.parent_id == work.span_id
    assert commit.attributes == {names.OUTCOME: "committed", names.COUNT: 2}
    for envelope, traceparent in outbox():
        assert envelope.trace_id == work.trace_id
        assert traceparent[:-2] == f"00-{envelope.trace_id}-{commit.span_id}-"


def test_outside_of_a_trace_the_commit_begins_one(traces: InMemory, database, outbox) -> None:
    with Session(database) as session:
        record_event(session, "one", {})
        session.commit()
    ((envelope, traceparent),) = outbox()
    assert envelope.trace_id == traces.one("commit").trace_id
    assert traceparent.split("-")[1] == envelope.trace_id


def test_a_trace_id_that_is_given_stays(traces: InMemory, database, outbox) -> None:
    with traces.tracer.start_as_current_span("work"), Session(database) as session:
        record_event(session, "one", {}, trace_id="mine")
        session.commit()
    assert outbox()[0][0].trace_id == "mine"


def test_a_process_that_does_not_trace_writes_no_context(database: Engine, outbox) -> None:
    with Session(database) as session:
        record_event(session, "one", {})
        session.commit()
    ((envelope, traceparent),) = outbox()
    assert (len(envelope.trace_id), traceparent) == (32, None)


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_a_transaction_that_rolls_back_says_so(traces: InMemory, database, woken, end: str) -> None:
    with Session(database) as session:
        record_event(session, "one", {})
        session.flush()
        getattr(session, end)()
    assert traces.one("commit").told == "rolled back"


def test_each_transaction_of_a_session_is_a_span_of_its_own(
    traces: InMemory, database, outbox
) -> None:
    with Session(database) as session:
        record_event(session, "one", {})
        with session.begin_nested():
            record_event(session, "two", {})
        session.commit()
        record_event(session, "three", {})
        session.commit()
    assert [each.attributes[names.COUNT] for each in traces.spans("commit")] == [2, 1]
    first, second = (each.span_id for each in traces.spans("commit"))
    assert [traceparent.split("-")[2] for _, traceparent in outbox()] == [first, first, second]


def test_a_session_joined_to_a_transaction_outside_cannot_say_that_it_committed(
    traces: InMemory, database, woken
) -> None:
    with database.connect() as connection, connection.begin(), Session(connection) as session:
        record_event(session, "one", {})
        session.commit()
    assert traces.one("commit").told == "joined"


def test_what_is_refused_is_not_counted(traces: InMemory, database, outbox) -> None:
    with Session(database) as session:
        with pytest.raises(InvalidPayload):
            record_event(session, "NO NAME", {})
        record_event(session, "one", {})
        session.commit()
    assert traces.one("commit").attributes[names.COUNT] == 1


def test_recorded_lines_are_traced_by_the_batch(
    traces: InMemory, database: Engine, outbox, tmp_path
) -> None:
    line = json.dumps({"event_type": "event_log", "data": EVENT_LOG}).encode()
    record_lines(database, [line] * 3, batch=2, keep=tmp_path / "bad")
    assert [each.attributes[names.COUNT] for each in traces.spans("record")] == [2, 1]
    ids = [each.trace_id for each in traces.spans("record")]
    assert [envelope.trace_id for envelope, _ in outbox()] == [ids[0], ids[0], ids[1]]


def test_sql_is_traced_within_spans_and_without_its_values(
    traces: InMemory, database: Engine, woken
) -> None:
    with database.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert traces.spans() == []
    with traces.tracer.start_as_current_span("work"), Session(database) as session:
        log_l1(session, "event_log", EVENT_LOG | {"message": PROMPT})
        session.commit()
        session.execute(text("SET LOCAL lock_timeout = 1"))
    assert not traces.one("SET").failed
    tables = [each.name for each in traces.spans("INSERT")]
    assert tables == ["INSERT mem0_cc.base_log"]
    assert PROMPT not in str(traces.spans())


def test_a_statement_that_fails_tells_its_sqlstate_and_no_value(
    traces: InMemory, database: Engine
) -> None:
    with (
        traces.tracer.start_as_current_span("work", record_exception=False),
        database.connect() as connection,
        pytest.raises(IntegrityError),
    ):
        connection.execute(
            text("INSERT INTO cos_events.subscription (name, modules) VALUES (NULL, ARRAY[:it])"),
            {"it": PROMPT},
        )
    failed = traces.one("INSERT cos_events.subscription")
    assert failed.attributes == {
        names.OUTCOME: "failed",
        names.ERROR_TYPE: "NotNullViolation",
        names.SQLSTATE: "23502",
    }
    assert failed.failed
    assert PROMPT not in failed.everything


def ask(answer: Callable[..., Any], *headers: tuple[bytes, bytes]) -> None:
    """One request to an ASGI application behind the middleware."""

    async def nothing(*_: Any) -> dict[str, Any]:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "POST", "path": "/orders/7", "headers": list(headers)}
    asyncio.run(TraceRequests(answer)(scope, nothing, nothing))


def answering(status: int) -> Callable[..., Any]:
    async def answer(scope: dict[str, Any], _receive: Any, send: Any) -> None:
        scope["route"] = type("Route", (), {"path": "/orders/{number}"})
        await send({"type": "http.response.start", "status": status, "headers": []})

    return answer


def test_a_request_is_a_span_that_continues_its_callers_trace(traces: InMemory) -> None:
    ask(answering(200), (b"traceparent", CALLER.encode()))
    request = traces.one("POST /orders/{number}")
    assert request.trace_id == CALLER.split("-")[1]
    assert request.parent_id == CALLER.split("-")[2]
    assert request.attributes == {
        names.HTTP_METHOD: "POST",
        names.HTTP_STATUS: 200,
        names.HTTP_ROUTE: "/orders/{number}",
    }


@pytest.mark.parametrize("header", [b"", b"nonsense", b"00-0-0-00", "00-é".encode()])
def test_a_request_without_a_good_context_begins_a_trace(traces: InMemory, header: bytes) -> None:
    ask(answering(503), (b"traceparent", header))
    request = traces.one("POST")
    assert request.parent_id == ""
    assert (request.failed, request.told) == (True, "503")


def test_a_request_whose_application_raises_fails_without_the_errors_text(traces: InMemory) -> None:
    async def answer(*_: Any) -> None:
        raise ValueError(PROMPT)

    with pytest.raises(ValueError, match=PROMPT):
        ask(answer)
    request = traces.one("POST")
    assert request.told == "ValueError"
    assert PROMPT not in request.everything


def test_only_where_it_is_asked_for_spans_hold_content(
    traces: InMemory, database: Engine, environment: Callable[..., None]
) -> None:
    environment(COS_EVENTS_TRACE_CONTENT="true")

    async def answer(*_: Any) -> None:
        with database.connect() as connection:
            connection.execute(text("SELECT 1 FROM cos_events.outbox"))
        raise ValueError(PROMPT)

    with pytest.raises(ValueError, match=PROMPT):
        ask(answer)
    assert traces.one("SELECT").attributes[names.STATEMENT] == "SELECT 1 FROM cos_events.outbox"
    assert PROMPT in traces.one("POST").everything
