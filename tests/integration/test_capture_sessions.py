"""Kinds of sessions, sessions joined to an outside transaction, and what SQLAlchemy itself does."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, insert, select, text
from sqlalchemy.exc import InvalidRequestError, PendingRollbackError, SAWarning
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from cos_events import dispatcher, log_l1, record_event
from cos_events.l1 import BaseLog, EventLog
from cos_events.store.models import OutboxRow

BASE_LOG = {
    "id": uuid4(),
    "source_module": "cc",
    "event_type": "own",
    "occurred_at": datetime.now(UTC),
    "trace_id": "",
    "request_id": "",
}
JOIN_MODES = ["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"]


def ids(committed: Callable[[], dict[str, int]], *event_types: str) -> list[int]:
    rows = committed()
    assert set(rows) == set(event_types)
    return [rows[event_type] for event_type in event_types]


class OwnSession(Session):
    """A session class of the application's own."""


@pytest.mark.parametrize(
    "make",
    [
        lambda engine: scoped_session(sessionmaker(engine))(),
        lambda engine: sessionmaker(engine, class_=OwnSession)(),
        lambda engine: sessionmaker(engine, info={"of": "the application"})(),
        lambda engine: Session(binds={OutboxRow: engine}),
    ],
    ids=["scoped_session", "subclass", "info", "binds"],
)
def test_any_kind_of_session_hands_over(database, woken, committed, make: Any) -> None:
    session = make(database)
    record_event(session, "one", {})
    session.commit()
    session.close()
    assert woken == [ids(committed, "one")]


def test_two_sessions_of_one_factory_do_not_mix(database, woken, committed) -> None:
    factory = sessionmaker(database, info={"shared": True})
    with factory() as first, factory() as second:
        record_event(first, "kept", {})
        record_event(second, "lost", {})
        second.flush()
        first.commit()
        second.rollback()
    assert woken == [ids(committed, "kept")]


@pytest.mark.parametrize("savepoint", [False, True], ids=["plain", "in a savepoint"])
@pytest.mark.parametrize("mode", JOIN_MODES)
def test_a_session_joined_to_an_outside_transaction_wakes_only_if_it_really_committed(
    database, woken, committed, mode, savepoint
) -> None:
    with database.connect() as connection:
        connection.begin()
        if savepoint:
            connection.begin_nested()
        with Session(connection, join_transaction_mode=mode) as session:
            record_event(session, "one", {})
            session.commit()
        really = mode == "control_fully" and not savepoint
        assert connection.in_transaction() is not really
        assert woken == ([ids(committed, "one")] if really else [])
        connection.rollback()
    assert set(committed()) == ({"one"} if really else set())
    assert len(woken) == really


@pytest.mark.parametrize("mode", JOIN_MODES)
def test_a_session_that_opens_its_connections_transaction_wakes(
    database, woken, committed, mode
) -> None:
    with database.connect() as connection:
        with Session(connection, join_transaction_mode=mode) as session:
            record_event(session, "one", {})
            session.commit()
        assert woken == [ids(committed, "one")]


def test_a_session_whose_tables_are_bound_to_an_outside_transaction_does_not_wake(
    database, woken, committed
) -> None:
    with database.connect() as connection:
        connection.begin()
        with Session(binds={OutboxRow: connection}) as session:
            record_event(session, "one", {})
            session.commit()
        assert committed() == {}
        assert woken == []
        connection.rollback()


def test_an_async_session_hands_over_through_its_sync_session(database, woken, committed) -> None:
    # An asynchronous driver is no dependency of the project; the session class that an
    # AsyncSession drives is what its events come from.
    if find_spec("greenlet"):
        from sqlalchemy.ext.asyncio import AsyncSession

        session = AsyncSession(sync_session_class=OwnSession).sync_session
    else:
        session = OwnSession()
    session.bind = database
    record_event(session, "one", {})
    with session.begin_nested():
        record_event(session, "two", {})
    session.commit()
    session.close()
    assert [sorted(each) for each in woken] == [sorted(ids(committed, "one", "two"))]


def test_core_statements_are_not_captured_but_record_event_works_beside_them(
    database, woken, committed
) -> None:
    row = {"source_module": "cc", "event_type": "core", "envelope": "{}"}
    other = "00000000-0000-7000-8000-00000000000"
    with Session(database) as session:
        record_event(session, "recorded", {})
        session.execute(insert(OutboxRow).values(event_id=f"{other}1", **row))
        session.execute(
            text(
                "INSERT INTO cos_events.outbox (event_id, source_module, event_type, envelope) "
                "VALUES (:event_id, 'cc', 'text', '{}')"
            ),
            {"event_id": f"{other}2"},
        )
        session.bulk_save_objects(
            [OutboxRow(event_id=f"{other}3", **{**row, "event_type": "bulk"})]
        )
        session.commit()
    assert woken == [[committed()["recorded"]]]
    assert set(committed()) == {"recorded", "core", "text", "bulk"}


def test_an_event_recorded_on_the_side_by_a_flush_hook_is_handed_over(
    database, woken, committed
) -> None:
    with Session(database) as session:

        @event.listens_for(session, "before_flush", once=True)
        def _record(session: Session, *_: object) -> None:
            record_event(session, "hooked", {})
            log_l1(session, "event_log", {"level": "info", "component": "c", "message": "hooked"})

        record_event(session, "one", {})
        session.add(BaseLog(**BASE_LOG))
        session.commit()
        assert session.scalars(select(EventLog.message)).all() == ["hooked"]
    assert [sorted(each) for each in woken] == [
        sorted(ids(committed, "one", "hooked", "event_log"))
    ]


@pytest.mark.parametrize("hook", ["after_insert", "after_flush"])
def test_an_event_recorded_within_a_flush_goes_with_the_next_one(
    database, woken, committed, hook
) -> None:
    def record(session: Session) -> None:
        log_l1(session, "event_log", {"level": "info", "component": "c", "message": hook})

    with Session(database) as session:
        if hook == "after_flush":
            event.listen(session, hook, lambda *_: record(session), insert=True, once=True)
        else:
            event.listen(BaseLog, hook, lambda *_: record(session), once=True)
        session.add(BaseLog(**BASE_LOG))
        expected = pytest.warns(SAWarning) if hook == "after_insert" else nullcontext()
        with expected:
            session.commit()
        assert session.scalars(select(EventLog.message)).all() == [hook]
    assert woken == [ids(committed, "event_log")]


def test_what_another_session_writes_is_all_there(database, committed) -> None:
    with Session(database) as session:
        log_l1(session, "event_log", {"level": "info", "component": "c", "message": "moved"})
        recorded = list(session.new)
        session.expunge_all()
    with Session(database) as other:
        other.add_all(recorded)
        other.commit()
        assert other.scalars(select(EventLog.message)).all() == ["moved"]
    assert set(committed()) == {"event_log"}


def test_an_outbox_row_of_ones_own_is_inserted_as_it_is(database, committed) -> None:
    row = {"event_id": uuid4(), "source_module": "cc", "event_type": "own", "envelope": "{}"}
    then = datetime(2025, 6, 18, tzinfo=UTC)
    with Session(database) as session:
        record_event(session, "one", {})
        session.add(OutboxRow(**row, recorded_at=then, published_at=then))
        session.merge(OutboxRow(**{**row, "event_id": uuid4()}, published_at=then))
        session.commit()
        published = select(OutboxRow.published_at).order_by(OutboxRow.event_type)
        assert list(session.scalars(published)) == [None, then, then]


def test_a_session_that_routes_by_the_mapped_class_is_asked_as_sqlalchemy_asks(
    database, woken, committed
) -> None:
    class Routing(Session):
        def get_bind(self, mapper: Any = None, **_: Any) -> Any:
            assert mapper is None or mapper.class_
            return database

    with Routing() as session:
        record_event(session, "one", {})
        session.commit()
    assert woken == [ids(committed, "one")]


def test_a_listener_that_raises_at_what_was_written_fails_the_flush(
    database, woken, committed
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with Session(database) as session:
        event.listen(session, "pending_to_transient", fail, once=True)
        record_event(session, "one", {})
        with pytest.raises(ZeroDivisionError):
            session.commit()
        with pytest.raises(PendingRollbackError):
            session.commit()
    assert (woken, committed()) == ([], {})


def test_sqlalchemy_fires_after_commit_for_an_empty_commit_and_a_released_savepoint(
    database,
) -> None:
    fired: list[bool] = []
    with Session(database) as session:
        event.listen(session, "after_commit", lambda s: fired.append(s.in_nested_transaction()))
        session.begin()
        session.commit()
        with session.begin_nested():
            session.execute(text("SELECT 1"))
        session.rollback()
    assert fired == [False, True]


def test_sqlalchemy_knows_an_outbox_id_after_the_flush_and_not_before(database) -> None:
    seen: list[int | None] = []

    def look(session: Session, *_: object) -> None:
        seen.extend(row.id for row in session.new)

    with Session(database) as session:
        event.listen(session, "before_flush", look)
        event.listen(session, "after_flush", look)
        session.add(
            OutboxRow(event_id=uuid4(), source_module="cc", event_type="one", envelope="{}")
        )
        session.flush()
        assert seen == [None, session.scalar(select(OutboxRow.id))]


def test_sqlalchemy_lets_a_listener_that_raises_spoil_a_committed_session(
    database, committed
) -> None:
    with Session(database) as session:

        @event.listens_for(session, "after_commit")
        def _raise(_session: Session) -> None:
            raise ZeroDivisionError

        record_event(session, "one", {})
        with pytest.raises(ZeroDivisionError):
            session.commit()
        assert set(committed()) == {"one"}
        with pytest.raises(InvalidRequestError):
            session.execute(text("SELECT 1"))


def test_sql_inside_after_commit_is_refused_by_sqlalchemy(database) -> None:
    with Session(database) as session:

        @event.listens_for(session, "after_commit")
        def _query(session: Session) -> None:
            session.execute(text("SELECT 1"))

        record_event(session, "one", {})
        with pytest.raises(InvalidRequestError):
            session.commit()


def test_a_dispatcher_that_raises_never_reaches_the_commit(
    database, committed, monkeypatch, caplog
) -> None:
    def refuse(_send: object) -> None:
        raise RuntimeError("can't start new thread")

    dispatcher.reset()
    monkeypatch.setattr(dispatcher, "Dispatcher", refuse)
    with Session(database) as session:
        for event_type in ("one", "two"):
            record_event(session, event_type, {})
            session.commit()
        assert session.scalar(text("SELECT 1")) == 1
    assert set(committed()) == {"one", "two"}
    assert "the relay will publish the rows" in caplog.text
