"""Which subscriptions and events a sweep of the relay looks at, and how far it need not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from outages import postgres_away
from sqlalchemy import Engine, delete, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from cos_events import record_event
from cos_events.redelivery import Redelivery
from cos_events.store import held, redelivery
from cos_events.store.models import DeliveryRow, OutboxRow
from cos_events.subscription import Subscription

from .conftest import delivered, published, record, register, taken_from, watermark

pytestmark = pytest.mark.usefixtures("woken")


@pytest.mark.usefixtures("few_are_many")
def test_the_watermark_follows_the_deliveries_and_stops_at_the_first_gap(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    had = record(database, 10)
    gap = record(database)
    published(database, [*had, *gap], ago=1)
    delivered(database, subscription, had)
    relay.sweep()
    relay.sweep()
    assert watermark(database, subscription.name) == 10


def have_had_ten(database: Engine, subscription: Subscription, relay: Redelivery) -> None:
    """Its watermark is at the tenth event, and it has had all of them."""
    had = record(database, 10)
    published(database, had, ago=1)
    delivered(database, subscription, had)
    for _ in range(3):
        relay.sweep()
    assert watermark(database, subscription.name) == 10


def replace_by_an_empty_one(database: Engine) -> None:
    """Another server, to which nothing was committed yet."""
    with database.begin() as connection:
        connection.execute(delete(OutboxRow))
        connection.execute(delete(DeliveryRow))
        connection.execute(text("UPDATE cos_events.subscription SET settled_through = 0"))
        connection.execute(text("ALTER SEQUENCE cos_events.outbox_id_seq RESTART"))


@pytest.mark.usefixtures("few_are_many")
def test_a_server_that_lost_the_last_transactions_is_not_taken_for_the_one_before(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    have_had_ten(database, subscription, relay)
    replace_by_an_empty_one(database)
    with Session(database) as session:
        late = record_event(session, "event_log", {})
        session.flush()
        for _ in range(3):
            relay.sweep()
        session.commit()
    published(database, [late], ago=3600)
    relay.sweep()
    assert [event_id for event_id, _ in taken_from(subscription.name)] == [late]


@pytest.mark.usefixtures("few_are_many")
def test_after_a_failure_the_server_may_be_another_one_that_is_as_far(
    database: Engine,
    subscription: Subscription,
    relay: Redelivery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have_had_ten(database, subscription, relay)
    with monkeypatch.context() as patch:
        patch.setattr(redelivery, "snapshot", postgres_away)
        with pytest.raises(OperationalError):
            relay.sweep()
    replace_by_an_empty_one(database)
    with Session(database) as late:
        record_event(late, "event_log", {})
        late.flush()
        others = record(database, 10)
        published(database, others, ago=1)
        delivered(database, subscription, others)
        for _ in range(3):
            relay.sweep()
        assert watermark(database, subscription.name) == 0


def test_a_subscription_is_left_alone_until_something_of_it_can_be_overdue_or_it_is_far_behind(
    database: Engine,
    subscription: Subscription,
    relay: Redelivery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    had = record(database, 2)
    published(database, had, ago=30)
    delivered(database, subscription, had)

    def through(_number: int) -> int:
        relay.sweep()
        return watermark(database, subscription.name)

    assert [*map(through, range(3))] == [0, 0, 0]
    published(database, had[:1], ago=61)
    assert [*map(through, range(2))][-1] == 2
    delivered(database, subscription, record(database))
    monkeypatch.setattr(redelivery, "AHEAD", 2)
    assert [*map(through, range(3))][-1] == 2
    monkeypatch.setattr(redelivery, "AHEAD", 1)
    assert [*map(through, range(3))][-1] == 3


def test_what_was_recorded_long_ago_and_published_just_now_is_lost_only_when_that_is_long_ago(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    lost = record(database)
    published(database, lost, ago=30, recorded=3600)
    assert [relay.sweep() for _ in range(3)] == [0, 0, 0]
    published(database, lost, ago=61, recorded=3600)
    assert relay.sweep() == 1


def test_an_event_from_the_future_hides_none_that_is_lost_behind_it(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    from_the_future, lost = record(database, 2)
    published(database, [from_the_future], ago=61, recorded=-3600)
    published(database, [lost], ago=61)
    delivered(database, subscription, [from_the_future])
    assert relay.sweep() == 1
    assert taken_from(subscription.name) == [(lost, 0)]


@pytest.mark.usefixtures("few_are_many")
def test_a_sweep_looks_at_so_many_events_and_the_next_goes_on_behind_them(
    database: Engine,
    subscription: Subscription,
    relay: Redelivery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redelivery, "SWEEP_SIZE", 2)
    waits, *had, lost = record(database, 7)
    published(database, [waits, *had], ago=1)
    published(database, [lost], ago=61)
    delivered(database, subscription, had)
    assert [relay.sweep() for _ in range(4)] == [0, 0, 0, 1]
    assert taken_from(subscription.name) == [(lost, 0)]
    assert watermark(database, subscription.name) == 0
    delivered(database, subscription, [waits])
    for _ in range(5):
        relay.sweep()
    assert watermark(database, subscription.name) == 7
    published(database, record(database, 1), ago=61)
    assert [relay.sweep() for _ in range(2)].count(1) == 1


@pytest.mark.usefixtures("few_are_many")
def test_a_relay_that_was_away_looks_at_many_events_in_a_sweep(
    database: Engine,
    subscription: Subscription,
    relay: Redelivery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redelivery, "SWEEP_SIZE", 2)
    had = record(database, 7)
    published(database, had, ago=1)
    delivered(database, subscription, had)
    # Four until it knows that no transaction can commit any of them late, and is at the end.
    for _ in range(4):
        relay.sweep()
    before = watermark(database, subscription.name)
    relay.sweep()
    assert (before, watermark(database, subscription.name)) == (0, 7)


@pytest.mark.usefixtures("few_are_many")
def test_the_watermark_waits_for_a_transaction_that_commits_late_with_a_low_number(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    with Session(database) as late:
        late_event = record_event(late, "event_log", {"n": "late"})
        late.flush()
        had = record(database, 5)
        published(database, had, ago=1)
        delivered(database, subscription, had)
        for _ in range(3):
            relay.sweep()
        assert watermark(database, subscription.name) == 0
        late.commit()
    published(database, [late_event], ago=61)
    for _ in range(3):
        relay.sweep()
    assert taken_from(subscription.name) == [(late_event, 0)]


@pytest.mark.usefixtures("few_are_many")
def test_the_watermark_waits_for_a_transaction_after_which_none_has_begun(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    had = record(database)
    published(database, had, ago=120)
    delivered(database, subscription, had)
    with Session(database) as late:
        event_id = record_event(late, "event_log", {"n": "late"})
        late.flush()
        for _ in range(3):
            relay.sweep()
        assert watermark(database, subscription.name) <= 1
        late.commit()
    published(database, [event_id], ago=61)
    assert relay.sweep() == 1
    assert taken_from(subscription.name) == [(event_id, 0)]


def test_a_transaction_has_its_number_before_its_row_has_an_id(database: Engine) -> None:
    with database.connect() as connection:
        columns = connection.scalars(
            text(
                "SELECT attname FROM pg_attribute WHERE attnum > 0 "
                "AND attrelid = 'cos_events.outbox'::regclass ORDER BY attnum"
            )
        ).all()
    assert columns[:2] == ["transaction_id", "id"]


def test_wider_filters_are_owed_what_was_passed_over(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    passed_over = record(database, event_type="prompt_trace")
    published(database, passed_over, ago=61)
    for _ in range(3):
        relay.sweep()
    assert watermark(database, subscription.name) == 1
    register(database, Subscription(subscription.name))
    assert relay.sweep() == 1
    assert taken_from(subscription.name) == [(passed_over[0], 0)]


def test_what_narrower_filters_leave_out_is_owed_no_more_and_others_hear_of_the_change(
    database: Engine, subscription: Subscription, caplog: pytest.LogCaptureFixture
) -> None:
    (kept,) = record(database)
    (left_out,) = record(database, event_type="prompt_trace")
    wide = Subscription(subscription.name)
    register(database, wide)
    with database.begin() as connection:
        held.hold(connection, [subscription.name], OutboxRow.id > 0)
    caplog.clear()
    register(database, wide)
    assert caplog.text == ""
    register(database, subscription)
    assert "If two applications declare it" in caplog.text
    with database.connect() as connection:
        waits = connection.scalars(select(DeliveryRow.event_id)).all()
    assert (waits, left_out in waits) == ([kept], False)


def test_a_relay_that_has_just_begun_takes_no_watermark_back(
    database: Engine,
    subscription: Subscription,
    relay: Redelivery,
    clean_queues: list[str],
    unique: Callable[[str], str],
) -> None:
    """It would owe a new subscription all that was recorded before it began."""
    before = record(database)
    new = Subscription(unique("new"))
    clean_queues.append(new.name)
    register(database, new)
    had = record(database)
    published(database, [*before, *had], ago=61)
    delivered(database, subscription, [*before, *had])
    delivered(database, new, had)
    assert [relay.sweep() for _ in range(3)] == [0, 0, 0]
    assert watermark(database, new.name) >= 1
