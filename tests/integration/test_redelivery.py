"""What the relay sends again, and what it leaves alone, on real servers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from kombu import Queue
from sqlalchemy import Engine, select, text, update
from sqlalchemy.orm import Session

from cos_events import broker, record_event
from cos_events.broadcast import Copy, make_wire, send_to_queue
from cos_events.envelope import Envelope
from cos_events.errors import BroadcastError
from cos_events.ledger import verify
from cos_events.relay import Redelivery
from cos_events.store import deliveries, redelivery, subscriptions
from cos_events.store.models import DeliveryRow, OutboxRow, SubscriptionRow
from cos_events.subscription import Subscription

pytestmark = pytest.mark.usefixtures("_nobody_is_woken")


@pytest.fixture
def _nobody_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cos_events.capture.wake", lambda *_: None)


@pytest.fixture
def subscription(
    broker_url: str, database: Engine, clean_queues: list[str], unique: Callable[[str], str]
) -> Subscription:
    """A subscription that nobody consumes, known to the database."""
    made = Subscription(unique("sub"), event_types=frozenset({"event_log"}))
    clean_queues.append(made.name)
    register(database, made)
    return made


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep looks at whatever is above a watermark."""
    monkeypatch.setattr(redelivery, "AHEAD", 1)


@pytest.fixture
def relay(database: Engine, subscription: Subscription) -> Iterator[Redelivery]:
    """A relay for which a minute is long."""
    return Redelivery(database, make_wire(), after=60.0)


def register(engine: Engine, subscription: Subscription) -> None:
    with engine.begin() as connection:
        subscriptions.register(connection, [subscription])


def record(engine: Engine, count: int = 1, event_type: str = "event_log") -> list[UUID]:
    with Session(engine) as session, session.begin():
        return [record_event(session, event_type, {"n": n}) for n in range(count)]


def published(
    engine: Engine, event_ids: list[UUID], ago: float, recorded: float | None = None
) -> None:
    """Let these have been published so many seconds ago, by a publisher whose copies were lost.

    And recorded at that time, or so many seconds ago.
    """
    now = datetime.now(UTC)
    before = ago if recorded is None else recorded
    with engine.begin() as connection:
        connection.execute(
            update(OutboxRow)
            .where(OutboxRow.event_id.in_(event_ids))
            .values(
                recorded_at=now - timedelta(seconds=before),
                published_at=now - timedelta(seconds=ago),
            )
        )


def taken_from(name: str) -> list[tuple[UUID, int]]:
    """The events on a queue with the attempts that their messages tell, and empty it."""
    taken = []
    with broker.connect() as connection, connection.channel() as channel:
        queue = Queue(name)(channel)
        while message := queue.get(no_ack=True):
            retries = message.headers.get("retries", 0)
            body = message.decode()
            raw = body[0][0][0] if retries else broker.body_of(message)
            taken.append((Envelope.decode(raw).base_log_id, retries))
    return taken


def watermark(engine: Engine, name: str) -> int:
    with engine.connect() as connection:
        query = select(SubscriptionRow.settled_through).where(SubscriptionRow.name == name)
        return connection.scalar(query) or 0


def test_a_published_event_without_delivery_goes_to_its_queue_again(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    lost = record(database, 3)
    published(database, lost, ago=61)
    assert relay.sweep() == 3
    assert taken_from(subscription.name) == [(event_id, 0) for event_id in lost]


def test_what_was_published_a_moment_ago_or_not_at_all_is_left_alone(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    published(database, record(database), ago=30)
    record(database)
    assert relay.sweep() == 0


def test_events_that_the_filters_do_not_let_through_are_left_alone(
    database: Engine, relay: Redelivery
) -> None:
    published(database, record(database, event_type="prompt_trace"), ago=3600)
    assert relay.sweep() == 0


def test_delivered_and_dead_events_are_left_alone(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    had, dead = record(database, 2)
    published(database, [had, dead], ago=3600)
    with database.begin() as connection:
        deliveries.settle(connection, subscription.name, [had], 1)
        deliveries.note_failure(
            connection,
            subscription.name,
            dead,
            state="dead",
            attempts=3,
            error="gone",
            next_attempt_at=None,
        )
    assert relay.sweep() == 0


def test_nothing_is_sent_while_messages_wait_in_the_queue(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    first = record(database)
    published(database, first, ago=61)
    assert relay.sweep() == 1
    second = record(database)
    published(database, second, ago=61)
    assert relay.sweep() == 0
    assert taken_from(subscription.name) == [(first[0], 0)]
    assert relay.sweep() == 1
    assert taken_from(subscription.name) == [(second[0], 0)]


def test_an_event_is_sent_again_only_after_another_while(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    lost = record(database)
    published(database, lost, ago=61)
    assert [relay.sweep(), len(taken_from(subscription.name)), relay.sweep()] == [1, 1, 0]
    with database.begin() as connection:
        long_ago = datetime(2000, 1, 1, tzinfo=UTC)
        connection.execute(update(DeliveryRow).values(next_attempt_at=long_ago))
    assert relay.sweep() == 1
    assert taken_from(subscription.name) == [(lost[0], 0)]


def test_an_overdue_retry_keeps_its_attempts(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    (failed,) = record(database)
    published(database, [failed], ago=3600)
    with database.begin() as connection:
        deliveries.note_failure(
            connection,
            subscription.name,
            failed,
            state="retrying",
            attempts=4,
            error="again",
            next_attempt_at=datetime.now(UTC) - timedelta(seconds=61),
        )
    assert relay.sweep() == 1
    assert taken_from(subscription.name) == [(failed, 4)]


def test_two_relays_do_not_send_the_same_event_twice(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    published(database, record(database, 5), ago=61)
    other = Redelivery(database, make_wire(), after=60.0)
    assert relay.sweep() + other.sweep() == 5
    assert len(taken_from(subscription.name)) == 5


def test_nothing_is_noted_or_sent_while_the_broker_is_away(
    database: Engine, subscription: Subscription, environment: Callable[..., None]
) -> None:
    lost = record(database)
    published(database, lost, ago=61)
    before = os.environ["BROKER_URL"]
    environment(BROKER_URL="redis://127.0.0.1:1/0")
    away = Redelivery(database, make_wire(), after=60.0)
    for _ in range(2):
        with pytest.raises(BroadcastError, match="does not answer"):
            away.sweep()
    environment(BROKER_URL=before)
    assert Redelivery(database, make_wire(), after=60.0).sweep() == 1
    assert taken_from(subscription.name) == [(lost[0], 0)]


@pytest.mark.usefixtures("few_are_many")
def test_the_watermark_follows_the_deliveries_and_stops_at_the_first_gap(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    had = record(database, 10)
    gap = record(database)
    published(database, [*had, *gap], ago=1)
    with database.begin() as connection:
        deliveries.settle(connection, subscription.name, had, 1)
    relay.sweep()
    relay.sweep()
    assert watermark(database, subscription.name) == 10


def test_a_subscription_is_left_alone_until_something_of_it_can_be_overdue_or_it_is_far_behind(
    database: Engine,
    subscription: Subscription,
    relay: Redelivery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    had = record(database, 2)
    published(database, had, ago=30)
    with database.begin() as connection:
        deliveries.settle(connection, subscription.name, had, 1)

    def through(_number: int) -> int:
        relay.sweep()
        return watermark(database, subscription.name)

    assert [*map(through, range(3))] == [0, 0, 0]
    published(database, had[:1], ago=61)
    assert [*map(through, range(2))][-1] == 2
    with database.begin() as connection:
        deliveries.settle(connection, subscription.name, record(database), 1)
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
    with database.begin() as connection:
        deliveries.settle(connection, subscription.name, [from_the_future], 1)
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
    with database.begin() as connection:
        deliveries.settle(connection, subscription.name, had, 1)
    assert [relay.sweep() for _ in range(4)] == [0, 0, 0, 1]
    assert taken_from(subscription.name) == [(lost, 0)]
    assert watermark(database, subscription.name) == 0
    with database.begin() as connection:
        deliveries.settle(connection, subscription.name, [waits], 1)
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
    with database.begin() as connection:
        deliveries.settle(connection, subscription.name, had, 1)
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
        with database.begin() as connection:
            deliveries.settle(connection, subscription.name, had, 1)
        for _ in range(3):
            relay.sweep()
        assert watermark(database, subscription.name) == 0
        late.commit()
    published(database, [late_event], ago=61)
    for _ in range(3):
        relay.sweep()
    assert taken_from(subscription.name) == [(late_event, 0)]


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


def test_what_the_relay_sends_again_is_no_longer_missing(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    published(database, record(database), ago=61)
    with database.connect() as connection:
        assert [each.missing for each in verify(connection, grace=60)] == [1]
    relay.sweep()
    with database.connect() as connection:
        (account,) = verify(connection, grace=60)
    assert (account.missing, account.in_flight) == (0, 1)


def test_what_later_events_have_overtaken_is_lost_though_the_queue_is_not_empty(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    lost, behind, had = record(database, 3)
    published(database, [lost], ago=200)
    published(database, [behind, had], ago=100)
    with database.begin() as connection:
        deliveries.settle(connection, subscription.name, [had], 1)
    send_to_queue(subscription.name, [Copy(envelope_of(database, behind))])
    assert relay.sweep() == 1
    assert taken_from(subscription.name) == [(behind, 0), (lost, 0)]


def test_an_event_whose_handler_runs_right_now_holds_up_neither_the_others_nor_the_relay(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    running, lost = record(database, 2)
    published(database, [running, lost], ago=61)
    with Session(database) as handler:
        deliveries.settle(handler, subscription.name, [running], 1)
        assert relay.sweep() == 1
        register(database, subscription)
        handler.commit()
    assert taken_from(subscription.name) == [(lost, 0)]


def envelope_of(engine: Engine, event_id: UUID) -> str:
    with engine.connect() as connection:
        query = select(OutboxRow.envelope).where(OutboxRow.event_id == event_id)
        return connection.scalars(query).one()
