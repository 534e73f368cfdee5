"""Only what really committed is handed over; each trap of SQLAlchemy's events is one test."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.orm import Session

from cos_events import record_event


def ids(committed: Callable[[], dict[str, int]], *event_types: str) -> list[int]:
    rows = committed()
    assert set(rows) == set(event_types)
    return [rows[event_type] for event_type in event_types]


def test_a_commit_hands_over_the_committed_ids(database, woken, committed) -> None:
    with Session(database) as session:
        record_event(session, "one", {})
        session.flush()
        record_event(session, "two", {})
        assert woken == []
        session.commit()
        assert woken == [ids(committed, "one", "two")]
    assert len(woken) == 1


def test_a_rollback_hands_over_nothing(database, woken, committed) -> None:
    with Session(database) as session:
        record_event(session, "one", {})
        session.flush()
        session.rollback()
        session.commit()
    assert (woken, committed()) == ([], {})


def test_an_event_recorded_after_a_rollback_goes_alone(database, woken, committed) -> None:
    with Session(database) as session:
        record_event(session, "lost", {})
        session.flush()
        session.rollback()
        record_event(session, "kept", {})
        session.commit()
    assert woken == [ids(committed, "kept")]


def test_a_block_that_raises_hands_over_nothing(database, woken, committed) -> None:
    with pytest.raises(ZeroDivisionError), Session(database) as session, session.begin():
        record_event(session, "one", {})
        session.flush()
        raise ZeroDivisionError
    assert (woken, committed()) == ([], {})


def test_a_released_savepoint_waits_for_the_outer_commit(database, woken, committed) -> None:
    with Session(database) as session:
        record_event(session, "outer", {})
        with session.begin_nested():
            record_event(session, "inner", {})
        assert woken == []
        session.commit()
    assert [sorted(each) for each in woken] == [sorted(ids(committed, "outer", "inner"))]


def test_a_rolled_back_savepoint_is_left_out(database, woken, committed) -> None:
    with Session(database) as session:
        record_event(session, "outer", {})
        savepoint = session.begin_nested()
        record_event(session, "inner", {})
        session.flush()
        savepoint.rollback()
        session.commit()
    assert woken == [ids(committed, "outer")]


def test_a_released_savepoint_whose_outer_transaction_rolls_back_is_left_out(
    database, woken, committed
) -> None:
    with Session(database) as session:
        with session.begin_nested():
            record_event(session, "inner", {})
        session.rollback()
        session.commit()
    assert (woken, committed()) == ([], {})


@pytest.mark.parametrize("inner", ["commit", "rollback"])
@pytest.mark.parametrize("middle", ["commit", "rollback"])
def test_savepoints_two_deep_keep_what_all_around_them_keep(
    database, woken, committed, inner, middle
) -> None:
    expected = ["root"] + ["middle"] * (middle == "commit")
    expected += ["inner"] * (inner == middle == "commit")
    with Session(database) as session:
        record_event(session, "root", {})
        first = session.begin_nested()
        record_event(session, "middle", {})
        second = session.begin_nested()
        record_event(session, "inner", {})
        session.flush()
        getattr(second, inner)()
        getattr(first, middle)()
        assert woken == []
        session.commit()
    assert [sorted(each) for each in woken] == [sorted(ids(committed, *expected))]


def test_a_commit_with_savepoints_still_open_releases_them(database, woken, committed) -> None:
    with Session(database) as session:
        session.begin_nested()
        record_event(session, "middle", {})
        session.begin_nested()
        record_event(session, "inner", {})
        session.get_transaction().commit()
    assert [sorted(each) for each in woken] == [sorted(ids(committed, "middle", "inner"))]


def test_closing_without_a_commit_hands_over_nothing(database, woken, committed) -> None:
    session = Session(database)
    record_event(session, "one", {})
    session.flush()
    session.close()
    session.commit()
    assert (woken, committed()) == ([], {})


def test_a_flush_that_fails_hands_over_nothing(database, woken, committed) -> None:
    with Session(database) as session:
        same = record_event(session, "one", {})
        session.commit()
        record_event(session, "two", {}, base_log_id=same)
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        session.commit()
    assert woken == [ids(committed, "one")]


def test_a_commit_again_after_a_flush_that_failed_fails_again(database, woken, committed) -> None:
    with Session(database) as session:
        same = record_event(session, "one", {})
        session.commit()
        record_event(session, "two", {}, base_log_id=same)
        with pytest.raises(IntegrityError):
            session.commit()
        for again in (session.commit, lambda: session.execute(text("SELECT 1"))):
            with pytest.raises(PendingRollbackError, match="due to a previous exception during"):
                again()
    assert woken == [ids(committed, "one")]


def test_a_flush_that_fails_in_a_savepoint_costs_no_more_than_the_savepoint(
    database, woken, committed
) -> None:
    with Session(database) as session:
        same = record_event(session, "one", {})
        with pytest.raises(IntegrityError), session.begin_nested():
            record_event(session, "two", {})
            record_event(session, "three", {}, base_log_id=same)
        record_event(session, "four", {})
        session.commit()
    assert woken == [ids(committed, "one", "four")]


def test_the_events_of_a_flush_have_ids_in_the_order_in_which_they_were_recorded(
    database, woken, committed
) -> None:
    names = [f"event_{number}" for number in range(1_500)]
    with Session(database) as session:
        for name in names:
            record_event(session, name, {})
        session.commit()
    assert woken == [ids(committed, *names)]
    assert woken[0] == sorted(woken[0])


def test_a_deferred_constraint_that_fails_at_commit_hands_over_nothing(
    database, woken, committed
) -> None:
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE parent (id int PRIMARY KEY)"))
        connection.execute(
            text(
                "CREATE TABLE child (parent int REFERENCES parent (id) "
                "DEFERRABLE INITIALLY DEFERRED)"
            )
        )
    with Session(database) as session:
        session.execute(text("INSERT INTO child VALUES (1)"))
        record_event(session, "lost", {})
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        assert (woken, committed()) == ([], {})
        record_event(session, "kept", {})
        session.commit()
    assert woken == [ids(committed, "kept")]


def prepared(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM pg_prepared_xacts")) or 0


def test_a_two_phase_commit_hands_over_after_the_commit(database, woken, committed) -> None:
    with Session(database, twophase=True) as session:
        record_event(session, "one", {})
        session.prepare()
        assert (woken, committed(), prepared(database)) == ([], {}, 1)
        session.commit()
    assert woken == [ids(committed, "one")]


def test_a_two_phase_commit_in_one_step_hands_over_too(database, woken, committed) -> None:
    with Session(database, twophase=True) as session:
        record_event(session, "one", {})
        session.commit()
    assert woken == [ids(committed, "one")]


def test_a_prepared_transaction_that_is_rolled_back_hands_over_nothing(
    database, woken, committed
) -> None:
    with Session(database, twophase=True) as session:
        record_event(session, "one", {})
        session.prepare()
        session.rollback()
    assert (woken, committed(), prepared(database)) == ([], {}, 0)


def test_each_commit_of_a_session_wakes_for_its_own_events(database, woken, committed) -> None:
    with Session(database) as session:
        for event_type in ("one", "two", "three"):
            record_event(session, event_type, {})
            session.commit()
    assert woken == [[each] for each in ids(committed, "one", "two", "three")]


def test_an_empty_commit_wakes_nothing(database, woken) -> None:
    with Session(database) as session:
        session.commit()
        record_event(session, "one", {})
        session.commit()
        session.execute(text("SELECT 1"))
        session.commit()
    assert len(woken) == 1
