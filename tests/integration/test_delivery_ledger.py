"""What the ledger does not hold against a handler, and what it keeps out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text, update
from sqlalchemy.orm import Session

from cos_events import Envelope
from cos_events.store import deliveries
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
    assert bus.row(name, raw) is None
    assert bus.dead_letters(name) == []


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
    assert bus.row(name, raw).error == "not an error to retry: DataError: SQLSTATE 22P02"


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
        assert due == dict.fromkeys(batch, False)
        looks = "SELECT seq_scan, idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'delivery'"
        assert connection.execute(text(looks)).one() == (0, len(batch))
