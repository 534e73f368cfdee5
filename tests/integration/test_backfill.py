"""A new subscription may have the history too: first to last, without a gap, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from cos_events import Envelope, record_event
from cos_events.broadcast import make_broadcaster, make_wire
from cos_events.declaration import subscriber
from cos_events.errors import SubscriptionError
from cos_events.feeder import Feeder
from cos_events.publisher import Publisher
from cos_events.redelivery import Redelivery
from cos_events.store.ledger import verify
from cos_events.store.models import SubscriptionRow

if TYPE_CHECKING:
    from conftest import Bus


@pytest.fixture
def publish(bus: Bus, database: Engine) -> Iterator[Callable[[], int]]:
    with closing(make_broadcaster()) as broadcaster:
        yield Publisher(database, broadcaster).publish


@pytest.fixture
def had() -> list[int]:
    """The numbers of the events that the handler had."""
    return []


@pytest.fixture
def handler(had: list[int]) -> Callable[[Envelope], None]:
    def handle(message: Envelope) -> None:
        number = message.data["n"]
        assert isinstance(number, int)
        had.append(number)

    return handle


@pytest.fixture
def sweep(
    bus: Bus, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], int]]:
    """One turn of the relay with a backfill of ten at a time, and of the workers."""
    monkeypatch.setattr("cos_events.redelivery.BACKFILL_SIZE", 10)
    with closing(make_wire()) as wire:
        feeder = Feeder(database, wire, 1_000, lost_after=60)
        redelivery = Redelivery(database, wire, lost_after=60.0)

        def turn(name: str) -> int:
            redelivery.sweep()
            feeder.sweep()
            return bus.run_queued(name)

        yield turn


def run_all(sweep: Callable[[str], int], name: str) -> None:
    """Until nothing came in three turns: a watermark takes two."""
    idle = 0
    while idle < 3:
        idle = 0 if sweep(name) else idle + 1


def record(bus: Bus, numbers: range) -> None:
    for number in numbers:
        bus.record(n=number)


def test_all_history_is_delivered_first_to_last_and_each_event_once(
    bus: Bus,
    database: Engine,
    publish: Callable[[], int],
    handler: Any,
    had: list[int],
    sweep: Callable[[str], int],
) -> None:
    record(bus, range(25))
    publish()
    name = bus.declare(handler, start_from="beginning")
    with database.connect() as connection:
        (account,) = verify(connection, grace=0)
    assert (account.waiting, account.missing) == (25, 0)
    run_all(sweep, name)
    assert had == list(range(25))


def test_live_events_arrive_meanwhile_and_nothing_is_left_out(
    bus: Bus, publish: Callable[[], int], handler: Any, had: list[int], sweep: Callable[[str], int]
) -> None:
    record(bus, range(30))
    publish()
    name = bus.declare(handler, start_from="beginning")
    for number in range(30, 36):
        bus.record(n=number)
        publish()
        sweep(name)
    run_all(sweep, name)
    assert sorted(had) == list(range(36))
    assert [n for n in had if n < 30] == list(range(30)), "the history is in order"


def test_what_was_recorded_but_not_published_when_it_began_is_not_left_out(
    bus: Bus, publish: Callable[[], int], handler: Any, had: list[int], sweep: Callable[[str], int]
) -> None:
    record(bus, range(10))
    publish()
    record(bus, range(10, 15))
    name = bus.declare(handler, start_from="beginning")
    run_all(sweep, name)
    assert had == list(range(10))
    publish()
    run_all(sweep, name)
    assert had == list(range(15))


def test_what_was_published_after_it_began_is_not_sent_as_history_as_well(
    bus: Bus, publish: Callable[[], int], handler: Any, had: list[int], sweep: Callable[[str], int]
) -> None:
    raw = bus.record(n=0)
    name = bus.declare(handler, start_from="beginning")
    publish()
    assert len(bus.queued(name)) == 1, "a worker has it in hand"
    assert [sweep(name) for _ in range(3)] == [0, 0, 0]
    assert bus.run(name, raw) == "SUCCESS"
    run_all(sweep, name)
    assert had == [0]


def test_what_commits_only_after_it_began_is_not_left_out(
    bus: Bus,
    database: Engine,
    publish: Callable[[], int],
    handler: Any,
    had: list[int],
    sweep: Callable[[str], int],
) -> None:
    with Session(database) as late:
        record_event(late, "event_log", {"n": 0}, module=bus.module)
        late.flush()
        record(bus, range(1, 8))
        publish()
        name = bus.declare(handler, start_from="beginning")
        run_all(sweep, name)
        late.commit()
    publish()
    run_all(sweep, name)
    assert sorted(had) == list(range(8))


def test_history_begins_at_a_time(
    bus: Bus,
    database: Engine,
    publish: Callable[[], int],
    handler: Any,
    had: list[int],
    sweep: Callable[[str], int],
) -> None:
    record(bus, range(5))
    with database.connect() as connection:
        since = connection.scalar(text("SELECT clock_timestamp()"))
    record(bus, range(5, 9))
    publish()
    name = bus.declare(handler, start_from=since)
    run_all(sweep, name)
    assert had == [5, 6, 7, 8]


def test_by_default_a_new_subscription_has_no_history(
    bus: Bus, publish: Callable[[], int], handler: Any, had: list[int], sweep: Callable[[str], int]
) -> None:
    record(bus, range(5))
    publish()
    run_all(sweep, bus.declare(handler))
    assert had == []


def test_once_handed_over_the_watermark_follows_as_for_any_other(
    bus: Bus,
    database: Engine,
    publish: Callable[[], int],
    handler: Any,
    had: list[int],
    sweep: Callable[[str], int],
) -> None:
    record(bus, range(12))
    publish()
    name = bus.declare(handler, start_from="beginning")
    run_all(sweep, name)
    with database.connect() as connection:
        until, settled = connection.execute(
            select(SubscriptionRow.backfill_until, SubscriptionRow.settled_through)
        ).one()
    assert until is None
    assert settled >= 12


@pytest.mark.parametrize("start", ["yesterday", 7, datetime(2026, 1, 1)])  # noqa: DTZ001 - naive
def test_a_start_that_is_none_is_refused(start: Any, unique: Callable[[str], str]) -> None:
    with pytest.raises(SubscriptionError, match="start_from must be 'now', 'beginning'"):
        subscriber(unique("sub"), start_from=start)(lambda message: None)


def test_an_aware_start_is_taken(unique: Callable[[str], str]) -> None:
    subscriber(unique("sub"), start_from=datetime.now(UTC))(lambda message: None)
