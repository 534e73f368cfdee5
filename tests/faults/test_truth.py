"""What a run takes for true: the application's journal, and events that fail at first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from cos_events import Envelope, record_event
from cos_events.faults import books
from cos_events.faults.report import Happened, Report
from cos_events.faults.truth import (
    SUBSCRIPTIONS,
    Journal,
    Transaction,
    fail_at_first,
    make_tables,
    note_effect,
    note_recorded,
)
from cos_events.recording import make_envelope


@pytest.fixture
def tables(database: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr("cos_events.capture.wake", lambda *_: None)
    with database.begin() as connection:
        make_tables(connection)
    return database


def recorded(engine: Engine, *, kept: bool = True) -> Envelope:
    with Session(engine) as session:
        envelope = make_envelope(event_type="event_log", data={"n": 1})
        record_event(session, "event_log", {"n": 1}, base_log_id=envelope.base_log_id)
        note_recorded(session, [envelope.base_log_id])
        if kept:
            session.commit()
    return envelope


def handled(engine: Engine, subscription: str, *messages: Envelope) -> None:
    with engine.begin() as connection:
        note_effect(connection, subscription, messages)


def a_report(engine: Engine, *transactions: Transaction) -> Report:
    with engine.connect() as connection:
        return Report(
            transactions=list(transactions),
            happened=[Happened("broker.cut", 1, 1, 0.0, hit="it"), Happened("child.kill", 2, 2, 1)],
            accounts=books.accounts(connection),
            dead=0,
            lost_by_postgres=0,
            postgres_away=[(100.0, 110.0)],
            restarts=0,
            ended=[],
            reached=set(),
            settled_after=0.0,
            unsettled=[],
            seconds=1.0,
        )


def test_a_journal_is_read_while_it_is_written_line_by_whole_line(tmp_path: Path) -> None:
    written, read = Journal(tmp_path / "journal"), Journal(tmp_path / "journal")
    read.read()
    assert read.transactions == []
    first = Transaction(1, "committed", ["a", "b"], 0.0, 0.1)
    written.write(first)
    with (tmp_path / "journal").open("ab") as file:
        file.write(b'{"number": 2, "outco')
    read.read()
    assert (read.transactions, read.committed) == ([first], 2)
    with (tmp_path / "journal").open("ab") as file:
        file.write(b'me": "failed", "events": ["c"], "began_at": 0.0, "seconds": 0.1}\n')
    read.read()
    assert (len(read.transactions), read.committed) == (2, 2)


def test_an_event_fails_as_often_as_it_says_at_the_subscription_that_it_names(
    tables: Engine,
) -> None:
    message = make_envelope(event_type="event_log", data={"failures": {"in_batches": 2}})
    fail_at_first("exactly_once", message)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            fail_at_first("in_batches", message)
    fail_at_first("in_batches", message)
    fail_at_first("in_batches", make_envelope(event_type="event_log", data={}))


def test_the_books_tell_what_is_missing_doubled_and_undone(tables: Engine) -> None:
    had, missed, undone = recorded(tables), recorded(tables), recorded(tables, kept=False)
    for name in SUBSCRIPTIONS:
        handled(tables, name, had, had)
    handled(tables, "in_batches", missed, undone)
    report = a_report(tables)
    assert [
        (each.delivered, each.missing, each.repeated, each.undone) for each in report.accounts
    ] == [(1, 1, 1, 0), (2, 0, 1, 1), (1, 1, 1, 0)]
    assert (report.missing, report.double_effects, report.undone_delivered) == (2, 2, 1)
    assert not report.ok
    with tables.connect() as connection:
        assert books.whereabouts(connection) == [
            "at_least_once has not received 1: not published",
            "exactly_once has not received 1: not published",
        ]
        assert (
            books.recorded_among(connection, [str(had.base_log_id), str(undone.base_log_id)]) == 1
        )
        moving = books.moving(connection)
    assert (moving.goal, moving.reached, moving.effects, moving.unpublished) == (6, 5, 8, 2)
    assert moving.open == 3


def test_copies_are_no_fault_where_at_least_once_is_promised(tables: Engine) -> None:
    had = recorded(tables)
    for name in SUBSCRIPTIONS:
        handled(tables, name, had)
    handled(tables, "at_least_once", had)
    report = a_report(tables)
    assert report.ok
    assert [each.repeated for each in report.accounts] == [0, 0, 1]


def test_the_longest_commit_is_none_of_those_that_met_a_postgresql_that_was_away(
    tables: Engine,
) -> None:
    def took(seconds: float, began_at: float, outcome: str = "committed") -> Transaction:
        return Transaction(1, outcome, [], began_at, seconds)

    report = a_report(
        tables,
        took(0.01, 50),
        took(0.02, 99.9),
        took(0.5, 99.9),
        took(9.0, 105),
        took(0.03, 110.1),
        took(7.0, 200, "failed"),
    )
    assert report.commits() == [0.03, 0.02, 0.01]
    assert report.as_dict()["longest_commit_ms"] == 30.0


def test_a_kind_counts_as_tried_though_it_hit_nobody(tables: Engine) -> None:
    report = a_report(tables)
    assert report.kinds() == {"broker.cut": 1, "child.kill": 0}
    assert report.as_dict()["kinds_without_hit"] == ["child.kill"]
