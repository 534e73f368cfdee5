"""Deliveries that fail: retries and dead letters, on real servers."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from types import FunctionType
from typing import TYPE_CHECKING, Any

import billiard.common
import pytest
from celery.exceptions import Ignore, Retry
from sqlalchemy import Engine, create_engine, text

from cos_events import Envelope, Rejected
from cos_events.broadcast.message import body_of
from cos_events.embedded import Servers

if TYPE_CHECKING:
    from conftest import Bus

NOBODY_LISTENS = "amqp://127.0.0.1:1//"
AT_ONCE: dict[str, Any] = {"retry_backoff": False, "default_retry_delay": 0}
"""On RabbitMQ a delayed retry outlives its deleted queue, and then blocks all delayed messages."""


def raises(error: BaseException) -> Callable[[Envelope], None]:
    def handler(message: Envelope) -> None:
        raise error

    return handler


def cancelled() -> Callable[[Envelope], Any]:
    async def handler(message: Envelope) -> None:
        raise asyncio.CancelledError

    return handler


@pytest.mark.parametrize(
    "handler",
    [
        raises(ValueError("no")),
        lambda message: False,
        lambda message: sys.exit(3),
        raises(Ignore()),
        raises(Retry()),
        cancelled(),
        raises(GeneratorExit()),
        raises(BaseException("a panic of an extension")),
    ],
    ids=[
        *("exception", "False", "sys.exit", "celery Ignore", "celery Retry", "cancelled coroutine"),
        *("generator exit", "no exception"),
    ],
)
def test_every_way_to_fail_is_noted_and_tried_again(bus: Bus, handler: Callable[..., Any]) -> None:
    name, raw = bus.declare(handler, **AT_ONCE), bus.record()
    assert bus.run(name, raw) == "RETRY"
    assert (bus.row(name, raw).state, bus.row(name, raw).attempts) == ("retrying", 1)


def test_sys_exit_is_a_failure_where_the_pool_has_put_its_own_in_its_place(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exit_(code: int) -> None:
        raise SystemExit(code)

    billiards = FunctionType(exit_.__code__, {**globals(), "__name__": "billiard.pool"})
    monkeypatch.setattr(sys, "exit", billiards)
    name, raw = bus.declare(lambda message: sys.exit(3), **AT_ONCE), bus.record()
    assert bus.run(name, raw) == "RETRY"
    assert "called sys.exit()" in bus.row(name, raw).error


def test_a_child_that_its_pool_ends_by_a_signal_has_not_failed(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a worker is told a second time to stop."""
    monkeypatch.setattr(billiard.common, "_should_have_exited", [False])
    before = signal.signal(signal.SIGTERM, billiard.common._shutdown_cleanup)
    try:
        name = bus.declare(lambda message: signal.raise_signal(signal.SIGTERM), max_retries=0)
        raw = bus.record()
        with pytest.raises(SystemExit):
            bus.run(name, raw)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert bus.row(name, raw) is None


def test_a_retry_is_noted_and_a_copy_waits_for_its_time(
    bus: Bus, eventually: Callable[..., None]
) -> None:
    soon = {"retry_backoff": False, "default_retry_delay": 1}
    name, raw = bus.declare(raises(ValueError("no")), **soon), bus.record()
    before = datetime.now(UTC)
    assert bus.run(name, raw, retries=1) == "RETRY"
    row = bus.row(name, raw)
    assert (row.state, row.attempts, row.error) == ("retrying", 2, "ValueError: no")
    assert timedelta(seconds=0.9) < row.next_attempt_at - before < timedelta(seconds=5)

    copies: list[Any] = []
    eventually(lambda: copies.extend(bus.queued(name)) or copies)
    (copy,) = copies
    assert copy.payload[0] == [[raw]]
    assert (copy.headers["task"], copy.headers["retries"]) == (name, 2)
    eta = datetime.fromisoformat(copy.headers["eta"])
    assert abs(eta - row.next_attempt_at) < timedelta(seconds=1)
    assert raw not in str(copy.headers), "no content where logs and Flower show it"


def dead_letter(bus: Bus, name: str, raw: str) -> dict[str, Any]:
    """The headers of the one dead letter there is, which must be this envelope."""
    (letter,) = bus.dead_letters(name)
    assert body_of(letter).decode() == raw
    assert bus.queued(name) == [], "no retry"
    return dict(letter.headers)


@pytest.mark.parametrize(
    ("error", "reason", "attempts"),
    [
        (ValueError("no"), "retries exhausted", 3),
        (Rejected("never"), "rejected", 1),
        (KeyError("k"), "not an error to retry", 1),
        (ArithmeticError("a"), "not an error to retry", 1),
    ],
)
def test_what_cannot_be_retried_is_dead_in_the_ledger_and_on_the_dead_letter_queue(
    bus: Bus, error: Exception, reason: str, attempts: int
) -> None:
    name = bus.declare(
        raises(error),
        autoretry_for=(ValueError, LookupError),
        dont_autoretry_for=(KeyError,),
        max_retries=2,
    )
    raw = bus.record()
    bus.run(name, raw, retries=attempts - 1)
    row = bus.row(name, raw)
    assert (row.state, row.attempts, row.next_attempt_at) == ("dead", attempts, None)
    assert row.error == f"{reason}: {type(error).__name__}: {error}"

    headers = dead_letter(bus, name, raw)
    times = [datetime.fromisoformat(headers[at]) for at in ("first_failed_at", "died_at")]
    assert times == sorted(times)
    assert abs(datetime.now(UTC) - times[1]) < timedelta(minutes=1)
    assert {key: headers[key] for key in ("subscription", "reason", "error_type", "error")} == {
        "subscription": name,
        "reason": reason,
        "error_type": type(error).__name__,
        "error": f"{type(error).__name__}: {error}",
    }
    assert headers["attempts"] == attempts


def test_the_log_says_what_failed_and_where_and_nothing_of_the_event(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    name = bus.declare(raises(ValueError("no")), max_retries=1)
    raw = bus.record()
    for retries in (0, 1):
        bus.run(name, raw, retries=retries)
    failed, dead = [each for each in caplog.records if each.name == "cos_events.failure"]
    assert (failed.levelname, dead.levelname) == ("WARNING", "ERROR")
    assert f"{name}: event {Envelope.decode(raw).base_log_id} failed, attempt 1, the next in" in (
        failed.getMessage()
    )
    assert "is a dead letter after 2 attempts: retries exhausted: ValueError: no" in (
        dead.getMessage()
    )
    for each in (failed, dead):
        assert f'File "{__file__}", line ' in each.getMessage()
        assert raw not in each.getMessage()


def test_a_dead_letter_says_when_its_first_attempt_failed(bus: Bus) -> None:
    name, raw = bus.declare(raises(ValueError("no")), max_retries=1, **AT_ONCE), bus.record()
    bus.run(name, raw)
    first = bus.row(name, raw).created_at
    bus.run(name, raw, retries=1)
    (letter,) = bus.dead_letters(name)
    assert datetime.fromisoformat(letter.headers["first_failed_at"]) == first


def test_a_dead_event_does_not_run_again(bus: Bus) -> None:
    runs: list[int] = []

    def handler(message: Envelope) -> None:
        runs.append(1)
        raise Rejected("never")

    name, raw = bus.declare(handler), bus.record()
    bus.run(name, raw)
    bus.run(name, raw)
    assert len(runs) == 1
    assert len(bus.dead_letters(name)) == 1


@pytest.fixture
def postgresql_away(servers: Servers, database: Engine) -> AbstractContextManager[None]:
    """Within it, the test's database refuses everybody; the sessions that there were are ended."""

    @contextmanager
    def away() -> Iterator[None]:
        name = database.url.database
        admin = create_engine(servers.database_url, isolation_level="AUTOCOMMIT")
        sessions = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :n")
        with admin.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
            connection.execute(sessions, {"n": name})
            yield
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
        admin.dispose()

    return away()


@pytest.mark.parametrize("when", ["before the handler", "within the handler"])
def test_while_postgresql_is_away_the_message_is_sent_again_without_using_an_attempt(
    bus: Bus,
    postgresql_away: AbstractContextManager[None],
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
    when: str,
) -> None:
    monkeypatch.setattr("cos_events.failure.LEDGER_AWAY_DELAY", 1.0)

    def handler(message: Envelope) -> None:
        if when == "within the handler":
            postgresql_away.__enter__()
        raise ValueError("no")

    name, raw = bus.declare(handler, max_retries=0), bus.record()
    if when == "before the handler":
        postgresql_away.__enter__()
    bus.run(name, raw)
    postgresql_away.__exit__(None, None, None)
    assert bus.row(name, raw) is None
    copies: list[Any] = []
    eventually(lambda: copies.extend(bus.queued(name)) or copies)
    assert [(copy.payload[0], copy.headers["retries"]) for copy in copies] == [([[raw]], 0)]
    assert bus.dead_letters(name) == []


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_when_the_broker_does_not_take_the_retry_it_keeps_the_original(
    bus: Bus, broker_url: str
) -> None:
    name, raw = bus.declare(raises(ValueError("no"))), bus.record()
    bus.app.conf.broker_url = NOBODY_LISTENS
    assert bus.run(name, raw) == "REJECTED"
    bus.app.conf.broker_url = broker_url
    assert bus.state(name, raw) == "retrying"


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
@pytest.mark.parametrize("raw", ["no envelope", None], ids=["unusable", "fails"])
def test_what_the_broker_keeps_goes_back_into_its_queue(
    bus: Bus, broker_url: str, raw: str | None
) -> None:
    name, given = bus.declare(raises(ValueError("no"))), raw or bus.record()
    bus.app.conf.broker_url = NOBODY_LISTENS
    rejected = bus.app.tasks[name].apply(args=([given],))
    bus.app.conf.broker_url = broker_url
    assert (rejected.state, rejected.result.requeue) == ("REJECTED", True)
