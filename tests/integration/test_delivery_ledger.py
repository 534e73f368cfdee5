"""What the ledger does not hold against a handler, and what it keeps out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from cos_events import Envelope
from cos_events.store import deliveries, engine
from cos_events.store.models import DeliveryRow

HISTORY = text("""
    WITH made AS (
        INSERT INTO cos_events.outbox (event_id, source_module, event_type, envelope)
        SELECT gen_random_uuid(), 'cc', 'event_log', '{}' FROM generate_series(1, :count)
        RETURNING id, event_id)
    INSERT INTO cos_events.delivery (subscription, event_id, outbox_id, state, attempts)
    SELECT 'old', event_id, id, 'delivered', 1 FROM made
""")

ONLY_OS_ERRORS = {"autoretry_for": (OSError,), "max_retries": 0}


def end_own_connection(session: Session) -> None:
    session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


def test_a_lost_database_connection_is_no_attempt_of_the_handler(bus: Any) -> None:
    def handler(message: Envelope, session: Session) -> None:
        end_own_connection(session)

    name, raw = bus.declare(handler, **ONLY_OS_ERRORS), bus.record()
    assert bus.run(name, raw) == "RETRY"
    row = bus.row(name, raw)
    assert (row.state, row.attempts, row.deaths) == ("retrying", 0, 1)
    assert bus.dead_letters(name) == []


@pytest.mark.parametrize("together", [False, True], ids=["alone", "in a batch"])
def test_an_event_that_ends_every_connection_it_gets_is_a_dead_letter_in_the_end(
    bus: Any, together: bool
) -> None:
    worked: list[object] = []

    def handle(message: Envelope, session: Session) -> None:
        if message.data["ends"]:
            end_own_connection(session)
        worked.append(message.base_log_id)

    def handle_batch(messages: list[Envelope], session: Session) -> None:
        for message in messages:
            handle(message, session)

    name = bus.declare(handle_batch, batch_size=2) if together else bus.declare(handle)
    bad, good = bus.record(ends=True), bus.record(ends=False)
    for _ in range(5):
        bus.run(name, bad, good)
    assert [bus.state(name, raw) for raw in (bad, good)] == ["dead", "delivered"]
    assert worked == [Envelope.decode(good).base_log_id]
    assert "its connection was lost" in bus.row(name, bad).error


def test_another_database_that_a_handler_loses_is_its_own_failure(
    bus: Any, database: Engine
) -> None:
    def handler(message: Envelope, session: Session) -> None:
        other = create_engine(database.url)
        with Session(other) as elsewhere:
            end_own_connection(elsewhere)

    name, raw = bus.declare(handler, **ONLY_OS_ERRORS), bus.record()
    bus.run(name, raw)
    assert bus.row(name, raw).state == "dead"


def swallow(session: Session) -> None:
    with suppress(DBAPIError):
        session.execute(text("SELECT 1 / 0"))


def driver_of(session: Session) -> Any:
    return session.connection().connection


def commit_and_fail(session: Session) -> None:
    session.commit()
    raise OSError("the mail server is away")


@pytest.mark.parametrize(
    ("handle", "sentence"),
    [
        (swallow, "carried on after a failed statement"),
        (lambda session: session.rollback(), "ended its session's transaction"),
        (lambda session: session.commit(), "committed its session"),
        (commit_and_fail, "committed its session"),
        (lambda session: driver_of(session).rollback(), "bypassing the session"),
    ],
    ids=[
        *("an error is swallowed", "it rolls back", "it commits", "it commits and fails"),
        "its driver rolls back",
    ],
)
def test_a_handler_that_ends_its_transaction_or_goes_on_in_a_broken_one_has_failed(
    bus: Any, handle: Callable[[Session], None], sentence: str
) -> None:
    name = bus.declare(lambda message, session: handle(session), max_retries=0)
    raw = bus.record()
    bus.run(name, raw)
    row = bus.row(name, raw)
    assert (row.state, row.attempts) == ("dead", 1)
    assert sentence in row.error


def test_a_failure_after_a_commit_past_the_session_is_said(
    bus: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(message: Envelope, session: Session) -> None:
        driver_of(session).commit()
        session.execute(text("SELECT 1"))
        raise OSError("the rest failed")

    name, raw = bus.declare(handler), bus.record()
    bus.run(name, raw)
    assert bus.state(name, raw) == "delivered"
    assert "failed, but is already delivered or dead, by another copy or by a commit" in caplog.text


@pytest.mark.parametrize("statement", ["SELECT 1", "SELECT 1 / 0"])
def test_a_savepoint_may_be_committed_or_fail(bus: Any, statement: str) -> None:
    def handler(message: Envelope, session: Session) -> None:
        with suppress(DBAPIError), session.begin_nested():
            session.execute(text(statement))

    name, raw = bus.declare(handler), bus.record()
    assert bus.run(name, raw) == "SUCCESS"
    assert bus.state(name, raw) == "delivered"


@pytest.mark.parametrize("wants_session", [False, True])
def test_a_pool_without_a_free_connection_is_no_attempt(
    bus: Any, monkeypatch: pytest.MonkeyPatch, wants_session: bool
) -> None:
    made: list[Engine] = []

    def small(url: str, **options: Any) -> Engine:
        made.append(make_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.2, **options))
        return made[-1]

    make_engine = engine.make_engine
    monkeypatch.setattr(engine, "make_engine", small)
    engine.reset()

    def with_session(message: Envelope, session: Session) -> None: ...

    def without(message: Envelope) -> None: ...

    name = bus.declare(with_session if wants_session else without, max_retries=0)
    raw = bus.record()
    get = engine.get_engine if wants_session else engine.get_autocommit_engine
    with get().connect():
        assert bus.run(name, raw) == "RETRY"
    assert bus.row(name, raw) is None
    engine.reset()


def test_isolation_is_read_committed_whatever_the_database_says(database: Engine) -> None:
    isolation = "SHOW transaction_isolation"
    with database.begin() as connection:
        name = database.url.database
        connection.execute(
            text(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
        )
    engine.reset()
    for get in (engine.get_engine, engine.get_relaxed_engine):
        with get().connect() as connection:
            assert connection.scalar(text(isolation)) == "read committed"


def test_a_failing_statement_of_the_handler_is_its_own_failure(bus: Any) -> None:
    def handler(message: Envelope, session: Session) -> None:
        session.execute(text("SELECT 1 / 0"))

    name, raw = bus.declare(handler, **ONLY_OS_ERRORS), bus.record()
    bus.run(name, raw)
    assert bus.row(name, raw).state == "dead"


def test_a_database_error_is_kept_without_the_values_in_it(bus: Any) -> None:
    def handler(message: Envelope, session: Session) -> None:
        session.execute(text("SELECT CAST(:secret AS integer)"), {"secret": "a prompt"})

    name, raw = bus.declare(handler, **ONLY_OS_ERRORS), bus.record()
    bus.run(name, raw)
    assert bus.row(name, raw).error == (
        "not an error to retry: DataError: InvalidTextRepresentation (SQLSTATE 22P02)"
    )


@pytest.mark.parametrize("words", ["a\0b", "a\ud800b"])
def test_an_error_that_cannot_be_stored_as_it_is_ends_like_any_other(bus: Any, words: str) -> None:
    def handler(message: Envelope) -> None:
        raise ValueError(words)

    name, raw = bus.declare(handler, max_retries=0), bus.record()
    bus.run(name, raw)
    assert bus.row(name, raw).state == "dead"
    assert len(bus.dead_letters(name)) == 1


def test_an_error_that_cannot_be_read_ends_like_any_other(bus: Any) -> None:
    class Unreadable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    def handler(message: Envelope) -> None:
        raise Unreadable

    name, raw = bus.declare(handler, max_retries=0), bus.record()
    bus.run(name, raw)
    assert bus.row(name, raw).state == "dead"


@pytest.mark.parametrize("takes_session", [False, True])
def test_an_old_copy_does_not_run_before_the_retrys_time(
    bus: Any, database: Engine, takes_session: bool
) -> None:
    runs: list[Envelope] = []

    def plain(message: Envelope) -> None:
        runs.append(message)
        raise ValueError("no")

    def with_session(message: Envelope, session: Session) -> None:
        plain(message)

    handler: Callable[..., None] = with_session if takes_session else plain
    options = {"retry_backoff": False, "default_retry_delay": 60}
    name, raw = bus.declare(handler, **options), bus.record()
    bus.run(name, raw)
    bus.run(name, raw)
    assert len(runs) == 1
    with database.begin() as connection:
        connection.execute(update(DeliveryRow).values(next_attempt_at=text("now()")))
    bus.run(name, raw)
    assert len(runs) == 2


def test_an_unusable_message_does_not_hold_up_the_good_ones_of_its_batch(
    bus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no dead-letter queue")

    monkeypatch.setattr("cos_events.dead_letters.burying._publish", broken)
    name = bus.declare(lambda messages: None, batch_size=3)
    good = [bus.record(), bus.record()]
    bus.run(name, good[0], "garbage", good[1])
    assert [bus.state(name, raw) for raw in good] == ["delivered", "delivered"]


def test_a_batchs_rows_are_looked_up_by_index_in_a_ledger_without_statistics(
    database: Engine,
) -> None:
    with database.begin() as connection:
        connection.execute(HISTORY, {"count": 20_000})
    with database.begin() as connection:
        batch = connection.scalars(text("SELECT event_id FROM cos_events.outbox LIMIT 100")).all()
        due = deliveries.due(connection, "old", batch, 1)
        assert due == dict.fromkeys(batch, (False, None))
        looks = "SELECT seq_scan, idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'delivery'"
        assert connection.execute(text(looks)).one() == (0, len(batch))
