"""What Celery, its signals and Flower hear of a delivery that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from celery.exceptions import Retry
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from cos_events import Envelope
from cos_events.errors import DeliveryFailed

if TYPE_CHECKING:
    from conftest import Bus

SECRET = "somebody@example.org"


def refuse(message: Envelope) -> None:
    raise ValueError("never")


def result_of(bus: Bus, name: str, *raws: str) -> Any:
    return bus.app.tasks[name].apply(args=(list(raws),)).result


def test_the_task_of_a_dead_letter_is_a_failure_with_the_ledgers_words(bus: Bus) -> None:
    name, raw = bus.declare(refuse, max_retries=0), bus.record()
    result = result_of(bus, name, raw)
    assert isinstance(result, DeliveryFailed)
    assert str(result) == f"a dead letter: {bus.row(name, raw).error}"
    assert str(result) == "a dead letter: retries exhausted: ValueError: never"


def test_so_is_that_of_garbage_and_of_an_event_from_elsewhere(bus: Bus) -> None:
    name = bus.declare(lambda message: None)
    stranger = Envelope.decode(bus.record()).model_copy(update={"base_log_id": UUID(int=0)})
    ended = [str(result_of(bus, name, each)) for each in ("garbage", stranger.encode())]
    assert all(each.startswith("a dead letter: ") for each in ended)
    assert ended[1].endswith("was never recorded in this database")


def test_a_task_of_several_succeeds_whatever_became_of_each(bus: Bus) -> None:
    name = bus.declare(refuse, max_retries=0)
    assert bus.run(name, bus.record(), bus.record(), "garbage") == "SUCCESS"


def test_another_copy_of_a_dead_letter_is_no_second_failure(bus: Bus) -> None:
    name, raw = bus.declare(refuse, max_retries=0), bus.record()
    assert [bus.run(name, raw), bus.run(name, raw)] == ["FAILURE", "SUCCESS"]


@pytest.mark.parametrize("max_retries", [1, 0], ids=["a retry", "a dead letter"])
def test_no_value_of_the_database_is_in_what_celery_logs_and_shows(
    bus: Bus, database: Engine, caplog: pytest.LogCaptureFixture, max_retries: int
) -> None:
    def twice(message: Envelope, session: Session) -> None:
        for _ in range(2):
            session.execute(text("INSERT INTO person VALUES (:email)"), {"email": SECRET})

    with database.begin() as connection:
        connection.execute(text("CREATE TABLE person (email text PRIMARY KEY)"))
    options: dict[str, Any] = {"retry_backoff": False, "default_retry_delay": 0}
    name = bus.declare(twice, max_retries=max_retries, **options)
    caplog.set_level("INFO")
    ended = bus.app.tasks[name].apply(args=([bus.record()],))
    shown = ended.result.exc if isinstance(ended.result, Retry) else ended.result
    assert "UniqueViolation (SQLSTATE 23505)" in str(shown)
    assert "UniqueViolation (SQLSTATE 23505)" in caplog.text
    assert SECRET not in f"{shown} {ended.traceback} {caplog.text}"
