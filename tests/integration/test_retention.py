"""What everybody has had is dropped once it is old; what someone still lacks never is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy
from locks import waits_for_a_lock
from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.orm import Session

from cos_events import record_event, replay, retention
from cos_events.l1 import healing, log_l1
from cos_events.l1.models import BaseLog
from cos_events.retention import Retention
from cos_events.selection import EVERYTHING
from cos_events.store import deliveries, locks, replays, subscriptions
from cos_events.store import retention as statements
from cos_events.store.models import DeliveryRow, OutboxRow, SubscriptionRow
from cos_events.subscription import Subscription

DAY = 86_400.0


# Rows wait until a test publishes them.
pytestmark = pytest.mark.usefixtures("woken")


@pytest.fixture
def event(database: Engine) -> Callable[..., UUID]:
    """An event published so many days ago, that these have had."""

    def make(days: float = 2, *had_by: str, published: bool = True) -> UUID:
        with Session(database) as session, session.begin():
            event_id = record_event(session, "event_log", {})
            session.flush()
            when = datetime.now(UTC) - timedelta(days=days)
            session.execute(
                update(OutboxRow)
                .where(OutboxRow.event_id == event_id)
                .values(published_at=when if published else None, recorded_at=when)
            )
            for name in had_by:
                deliveries.settle(session, name, [event_id], 1)
        return event_id

    return make


def subscribe(engine: Engine, *names: str, settled: int = 10**6) -> None:
    with engine.begin() as connection:
        subscriptions.register(connection, [Subscription(name) for name in names])
        connection.execute(update(SubscriptionRow).values(settled_through=settled))


def kept(engine: Engine) -> list[UUID]:
    with engine.connect() as connection:
        return list(connection.scalars(select(OutboxRow.event_id).order_by(OutboxRow.id)))


def test_what_everybody_has_had_is_dropped_with_its_deliveries_once_it_is_old(
    database: Engine, event: Callable[..., UUID]
) -> None:
    subscribe(database, "a", "b")
    event(2, "a", "b")
    young = event(0.5, "a", "b")
    assert Retention(database, DAY).sweep() == 1
    assert kept(database) == [young]
    with database.connect() as connection:
        assert set(connection.scalars(select(DeliveryRow.event_id))) == {young}


@pytest.mark.parametrize("state", ["held", "retrying", "dead"])
def test_what_one_still_lacks_stays(
    database: Engine, event: Callable[..., UUID], state: str
) -> None:
    subscribe(database, "a", "b")
    lacked = event(2, "a", "b")
    with database.begin() as connection:
        connection.execute(
            update(DeliveryRow).where(DeliveryRow.subscription == "b").values(state=state)
        )
    assert Retention(database, DAY).sweep() == 0
    assert kept(database) == [lacked]


def test_what_a_person_discarded_is_dropped(database: Engine, event: Callable[..., UUID]) -> None:
    subscribe(database, "a")
    event(2, "a")
    with database.begin() as connection:
        connection.execute(update(DeliveryRow).values(state="discarded"))
    assert Retention(database, DAY).sweep() == 1


def test_what_is_not_behind_every_watermark_stays(
    database: Engine, event: Callable[..., UUID]
) -> None:
    subscribe(database, "a", settled=0)
    lacked = event(2)
    assert Retention(database, DAY).sweep() == 0
    assert kept(database) == [lacked]


def test_what_is_not_published_stays(database: Engine, event: Callable[..., UUID]) -> None:
    waiting = event(2, published=False)
    assert Retention(database, DAY).sweep() == 0
    assert kept(database) == [waiting]


def test_without_subscriptions_what_is_old_is_dropped(
    database: Engine, event: Callable[..., UUID]
) -> None:
    event(2)
    assert Retention(database, DAY).sweep() == 1


def test_it_keeps_all_for_ever_where_it_is_told_so(
    database: Engine, event: Callable[..., UUID]
) -> None:
    event(2000)
    assert Retention(database, None).sweep() == 0


def test_a_sweep_looks_at_one_batch_and_the_next_goes_on_behind_it(
    database: Engine, event: Callable[..., UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH_SIZE", 2)
    subscribe(database, "a")
    first = [event(2, "a") for _ in range(2)]
    with database.begin() as connection:
        connection.execute(update(DeliveryRow).values(state="dead"))
    for _ in range(3):
        event(2, "a")
    now = 0.0
    sweeping = Retention(database, DAY, clock=lambda: now)
    assert [sweeping.sweep() for _ in range(3)] == [0, 2, 1]
    assert kept(database) == first
    event(2, "a")
    assert sweeping.sweep() == 0, "it rests at the end of a round"
    now = retention.REST + 1
    assert [sweeping.sweep() for _ in range(2)] == [0, 1]


def test_a_round_ends_at_a_batch_whose_last_event_is_too_young(
    database: Engine, event: Callable[..., UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is younger would be read to its end otherwise, however much that is.
    monkeypatch.setattr(retention, "BATCH_SIZE", 2)
    subscribe(database, "a")
    event(2, "a")
    young = event(0, "a")
    late = event(2, "a")
    now = 0.0
    sweeping = Retention(database, DAY, clock=lambda: now)
    assert [sweeping.sweep() for _ in range(2)] == [1, 0]
    assert kept(database) == [young, late]
    now = retention.REST + 1
    assert sweeping.sweep() == 1
    assert kept(database) == [young]


def test_what_was_published_late_ends_no_round(
    database: Engine, event: Callable[..., UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH_SIZE", 2)
    subscribe(database, "a")
    late = [event(2, "a") for _ in range(2)]
    with database.begin() as connection:
        connection.execute(update(OutboxRow).values(published_at=func.now()))
    for _ in range(4):
        event(2, "a")
    sweeping = Retention(database, DAY, clock=lambda: 0.0)
    assert [sweeping.sweep() for _ in range(3)] == [0, 2, 2]
    assert kept(database) == late


def test_two_at_once_do_not_disturb_each_other(
    database: Engine, event: Callable[..., UUID]
) -> None:
    event(2)
    with database.begin() as connection:
        assert locks.retention(connection, wait=False)
        assert Retention(database, DAY).sweep() == 0
    assert Retention(database, DAY).sweep() == 1


def test_l1_rows_stay_and_are_not_taken_for_unrecorded_afterwards(
    database: Engine, event: Callable[..., UUID]
) -> None:
    with Session(database) as session, session.begin():
        log_l1(session, "event_log", {"level": "INFO", "component": "c", "message": "m"})
    with database.begin() as connection:
        old = datetime.now(UTC) - timedelta(days=2)
        connection.execute(update(OutboxRow).values(published_at=old, recorded_at=old))
        connection.execute(update(healing.BaseLog).values(recorded_at=old))
    assert Retention(database, DAY).sweep() == 1
    with database.connect() as connection:
        assert connection.scalar(select(func.count(healing.BaseLog.id))) == 1
    assert healing.find(database, EVERYTHING, heal=True).found == 0


def test_status_says_who_holds_it_up(database: Engine, event: Callable[..., UUID]) -> None:
    subscribe(database, "a", settled=0)
    with database.connect() as connection:
        assert statements.held_up_by(connection, timedelta(days=1)) is None
    event(2)
    with database.connect() as connection:
        assert statements.held_up_by(connection, timedelta(days=1)) == "a"
        used, oldest = statements.size(connection)
    assert used > 8192
    assert oldest is not None


def test_what_is_replayed_meanwhile_is_not_held_without_its_event(
    database: Engine, event: Callable[..., UUID], eventually: Callable[..., None]
) -> None:
    subscribe(database, "mailer")
    for _ in range(3):
        event(8, "mailer")
    with ThreadPoolExecutor(1) as pool:
        with database.begin() as connection:
            page, _ = statements.next_page(connection, 0, timedelta(days=7), 10)
            assert statements.drop(connection, page) == 3
            said = pool.submit(replay.run_again, "mailer", EVERYTHING)
            eventually(lambda: waits_for_a_lock(database))
        assert said.result() == (0, 0)
    with Session(database) as session:
        assert session.scalars(select(DeliveryRow)).all() == []


@pytest.mark.parametrize(
    "arrives",
    [
        lambda connection, name, event_id: deliveries.settle(connection, name, [event_id], 1),
        lambda connection, name, event_id: deliveries.hold(connection, name, [event_id]),
        deliveries.count_death,
    ],
    ids=["and is settled", "and is held", "after a death"],
)
def test_a_late_copy_of_what_is_being_dropped_leaves_nothing_and_does_not_run(
    database: Engine,
    event: Callable[..., UUID],
    eventually: Callable[..., None],
    arrives: Callable[[Connection, str, UUID], object],
) -> None:
    subscribe(database, "mailer")
    dropped = event(8, "mailer")

    def come() -> object:
        with database.begin() as connection:
            return arrives(connection, "mailer", dropped)

    with ThreadPoolExecutor(1) as pool:
        with database.begin() as connection:
            page, _ = statements.next_page(connection, 0, timedelta(days=7), 10)
            assert statements.drop(connection, page) == 1
            copy = pool.submit(come)
            eventually(lambda: copy.done() or waits_for_a_lock(database))
        assert not copy.result()
    with Session(database) as session:
        assert session.scalars(select(DeliveryRow)).all() == []


def test_what_a_replay_holds_is_not_dropped(database: Engine, event: Callable[..., UUID]) -> None:
    subscribe(database, "mailer")
    replayed, old = event(8, "mailer"), event(8, "mailer")
    with database.connect() as person, person.begin():
        assert replays.run_again(person, "mailer", [1]) == 1
        with database.begin() as connection:
            page, _ = statements.next_page(connection, 0, timedelta(days=7), 10)
            assert statements.drop(connection, page) == 1
    with Session(database) as session:
        assert session.scalars(select(OutboxRow.event_id)).all() == [replayed]
        assert session.get(DeliveryRow, ("mailer", old)) is None


def test_what_is_dropped_while_l1_is_healed_is_not_recorded_once_more(database: Engine) -> None:
    with Session(database) as session, session.begin():
        event_id = log_l1(session, "event_log", {"level": "i", "component": "c", "message": "m"})
        session.flush()
        past = datetime.now(UTC) - timedelta(days=2)
        row = update(OutboxRow).where(OutboxRow.event_id == event_id)
        session.execute(row.values(published_at=past, recorded_at=past))
        session.execute(update(BaseLog).values(recorded_at=past))
    dropped: list[int] = []

    def drop_now(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "base_log" in statement and "LIMIT" in statement and not dropped:
            dropped.append(Retention(database, DAY).sweep())

    sqlalchemy.event.listen(database, "after_cursor_execute", drop_now)
    found = healing.find(database, EVERYTHING, heal=True)
    sqlalchemy.event.remove(database, "after_cursor_execute", drop_now)
    assert (dropped, found.found, found.healed) == ([1], 0, 0)


def test_a_longer_retention_does_not_bring_back_what_was_dropped(database: Engine) -> None:
    with database.begin() as connection:
        statements.note(connection, timedelta(days=1))
        before = statements.dropped_before(connection)
        statements.note(connection, timedelta(days=30))
        assert statements.dropped_before(connection) == before
