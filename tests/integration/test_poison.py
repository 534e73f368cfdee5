"""A message that kills its worker again and again ends among the dead letters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from celery.exceptions import WorkerLostError
from sqlalchemy import Engine

from cos_events import Envelope, Rejected, failure
from cos_events.retry import Dead, RetryAfter
from cos_events.store import deliveries
from cos_events.subscribers import subscribers_of

if TYPE_CHECKING:
    from conftest import Bus


@pytest.fixture
def redelivered(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Whether what runs next was in the hands of a worker before."""
    return lambda was: monkeypatch.setattr("cos_events.delivery._is_redelivered", lambda _: was)


class Killed(KeyboardInterrupt):
    """Ends a delivery as the death of its process does: nothing is noted."""


def kill(message: Envelope) -> None:
    raise Killed


def run(bus: Bus, name: str, raw: str) -> None:
    with pytest.raises(Killed):
        bus.run(name, raw)


def test_a_message_of_which_workers_die_is_a_dead_letter_after_a_set_number_of_deaths(
    bus: Bus, redelivered: Callable[[bool], None]
) -> None:
    name, raw = bus.declare(kill, max_deaths=3), bus.record()
    redelivered(False)
    run(bus, name, raw)
    redelivered(True)
    run(bus, name, raw)
    run(bus, name, raw)
    bus.run(name, raw)
    row = bus.row(name, raw)
    assert (row.state, row.deaths) == ("dead", 3)
    assert row.error.startswith("killed its worker 3 times: WorkerLostError")
    (letter,) = bus.dead_letters(name)
    assert letter.headers["reason"] == "killed its worker 3 times"


def test_deaths_count_in_a_row_only(bus: Bus, redelivered: Callable[[bool], None]) -> None:
    calls: list[int] = []

    def handler(message: Envelope) -> None:
        calls.append(1)
        if len(calls) % 2:
            raise Killed
        raise ValueError("an ordinary failure")

    name = bus.declare(handler, max_deaths=2, retry_backoff=False, default_retry_delay=0)
    raw = bus.record()
    for retries in range(3):
        redelivered(False)
        with pytest.raises(Killed):
            bus.run(name, raw, retries=retries)
        redelivered(True)
        bus.run(name, raw, retries=retries)
    assert bus.state(name, raw) == "retrying"
    assert len(calls) == 6


def test_a_redelivered_message_that_gets_through_is_delivered(
    bus: Bus, redelivered: Callable[[bool], None]
) -> None:
    seen: list[Envelope] = []
    name, raw = bus.declare(seen.append, max_deaths=2), bus.record()
    redelivered(True)
    assert bus.run(name, raw) == "SUCCESS"
    bus.run(name, raw)
    assert len(seen) == 1
    assert bus.state(name, raw) == "delivered"


def test_a_child_that_was_lost_counts_too(bus: Bus) -> None:
    name, raw = bus.declare(lambda message: None, max_deaths=2, retry_jitter=False), bus.record()
    task = bus.app.tasks[name]
    made = subscribers_of(bus.app)[name]
    lost = WorkerLostError("exitcode 9")
    assert isinstance(failure.fail(task, made, raw, 0, lost, deaths=None), RetryAfter)
    killed = Dead("killed its worker 2 times")
    assert failure.fail(task, made, raw, 1, lost, deaths=None) == killed
    row = bus.row(name, raw)
    assert (row.state, row.deaths, row.attempts) == ("dead", 2, 2)


def test_what_a_handler_raises_is_no_death_whatever_it_is_called(bus: Bus) -> None:
    def handler(message: Envelope) -> None:
        raise WorkerLostError("of a task that the handler waited for")

    name, raw = bus.declare(handler, retry_jitter=False), bus.record()
    assert bus.run(name, raw) == "RETRY"
    row = bus.row(name, raw)
    assert (row.state, row.deaths, row.attempts) == ("retrying", 0, 1)


def test_a_retry_that_is_due_long_after_waits_in_postgresql(bus: Bus) -> None:
    def handler(message: Envelope) -> None:
        raise ValueError

    name = bus.declare(handler, retry_backoff=False, default_retry_delay=3600)
    raw = bus.record()
    assert bus.run(name, raw) == "RETRY"
    assert bus.state(name, raw) == "held"
    assert bus.queued(name) == []


def test_a_retry_is_on_the_broker_or_waits_in_postgresql_also_at_the_limit(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    def handler(message: Envelope) -> None:
        raise ValueError

    monkeypatch.setattr(failure, "LONGEST_ON_BROKER", 0.0)
    name = bus.declare(handler, retry_backoff=False, default_retry_delay=0)
    raw = bus.record()
    assert bus.run(name, raw) == "RETRY"
    assert bus.state(name, raw) == "retrying"
    eventually(lambda: bus.queued(name))


def test_of_what_is_dead_no_death_is_counted(bus: Bus, database: Engine) -> None:
    def handler(message: Envelope) -> None:
        raise Rejected("never")

    name, raw = bus.declare(handler), bus.record()
    bus.run(name, raw)
    with database.begin() as connection:
        assert not deliveries.count_death(connection, name, Envelope.decode(raw).base_log_id)
    assert bus.row(name, raw).deaths == 0


def test_a_retry_after_half_a_second_comes_on_either_broker(
    bus: Bus, eventually: Callable[..., None]
) -> None:
    def handler(message: Envelope) -> None:
        raise ValueError

    name = bus.declare(handler, retry_backoff=False, default_retry_delay=0.5)
    raw = bus.record()
    assert bus.run(name, raw) == "RETRY"
    row = bus.row(name, raw)
    assert (row.state, row.attempts, row.deaths) == ("retrying", 1, 0)
    eventually(lambda: bus.queued(name))
