"""What the relay sends again, and what it leaves alone, on real servers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY
from queues import drain
from redis import Redis
from retries import failed
from sqlalchemy import Connection, Engine, Row, update
from sqlalchemy.orm import Session

from cos_events import broker
from cos_events.broadcast import Copy, make_wire, send_to_queue
from cos_events.errors import BroadcastError
from cos_events.incoming import is_redelivered
from cos_events.redelivery import Redelivery
from cos_events.store import deliveries, redelivery, removal
from cos_events.store.ledger import verify
from cos_events.store.models import DeliveryRow
from cos_events.subscription import Subscription

from .conftest import delivered, envelope_of, published, record, register, taken_from

pytestmark = pytest.mark.usefixtures("woken")


def test_a_published_event_without_delivery_goes_to_its_queue_again(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    lost = record(database, 3)
    published(database, lost, ago=61)
    assert relay.sweep() == 3
    assert taken_from(subscription.name) == [(event_id, 0) for event_id in lost]
    its = {"subscription": subscription.name}
    assert REGISTRY.get_sample_value("cos_events_sent_again_total", its) == 3


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
            wait=None,
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
    (late,) = record(database)
    published(database, [late], ago=3600)
    failed(database, subscription.name, late, attempts=4, wait=-61)
    assert relay.sweep() == 1
    assert taken_from(subscription.name) == [(late, 4)]


def test_two_relays_do_not_send_the_same_event_twice(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    published(database, record(database, 5), ago=61)
    other = Redelivery(database, make_wire(), lost_after=60.0)
    assert relay.sweep() + other.sweep() == 5
    assert len(taken_from(subscription.name)) == 5


def test_nothing_is_noted_or_sent_while_the_broker_is_away(
    database: Engine, subscription: Subscription, environment: Callable[..., None]
) -> None:
    lost = record(database)
    published(database, lost, ago=61)
    before = os.environ["BROKER_URL"]
    environment(BROKER_URL="redis://127.0.0.1:1/0")
    away = Redelivery(database, make_wire(), lost_after=60.0)
    for _ in range(2):
        with pytest.raises(BroadcastError, match="cannot be used"):
            away.sweep()
    environment(BROKER_URL=before)
    assert Redelivery(database, make_wire(), lost_after=60.0).sweep() == 1
    assert taken_from(subscription.name) == [(lost[0], 0)]


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
    delivered(database, subscription, [had])
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


def test_a_retry_that_later_events_have_overtaken_is_lost_though_the_queue_is_not_empty(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    (retry,), (later,), (waits,) = (record(database) for _ in range(3))
    published(database, [retry], ago=7_200)
    published(database, [later, waits], ago=1)
    failed(database, subscription.name, retry, attempts=1, wait=-3_600)
    with closing(make_wire()) as wire:
        wire.send_to_queue(subscription.name, [Copy(envelope_of(database, waits))])
    assert relay.sweep() == 0
    delivered(database, subscription, [later])
    assert relay.sweep() == 1
    assert (retry, 1) in taken_from(subscription.name)


def test_one_queue_that_cannot_be_used_holds_up_no_other_subscription(
    database: Engine,
    subscription: Subscription,
    relay: Redelivery,
    clean_queues: list[str],
    unique: Callable[[str], str],
) -> None:
    first = Subscription(unique("a"))
    clean_queues.append(first.name)
    register(database, first)
    if broker.on_rabbitmq():
        with broker.connect() as connection, connection.channel() as channel:
            channel.queue_declare(first.name, durable=False, auto_delete=False)
    else:
        with Redis.from_url(broker.broker_url()) as client:
            client.hset(first.name, "something", "else")
    lost = record(database)
    published(database, lost, ago=61)
    with suppress(BroadcastError):
        relay.sweep()
    assert taken_from(subscription.name) == [(lost[0], 0)]
    if not broker.on_rabbitmq():
        with Redis.from_url(broker.broker_url()) as client:
            client.delete(first.name)


def test_nothing_is_sent_again_to_a_subscription_that_was_removed(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    lost = record(database)
    failed(database, subscription.name, lost[0], attempts=1, wait=-61)
    with database.begin() as connection:
        removal.forget(connection, subscription.name)
        late = redelivery.take_late_retries(
            connection, subscription.name, timedelta(), 10, overtaken=False
        )
    assert (late, relay.sweep()) == ([], 0)


def test_what_a_slightly_later_event_has_overtaken_may_still_be_in_a_workers_hands(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    runs, behind, had = record(database, 3)
    published(database, [runs], ago=130)
    published(database, [had], ago=100)
    published(database, [behind], ago=1)
    delivered(database, subscription, [had])
    send_to_queue(subscription.name, [Copy(envelope_of(database, behind))])
    assert relay.sweep() == 0


def test_what_is_only_held_or_tried_again_has_overtaken_nothing(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    waits, failing, kept_back = record(database, 3)
    published(database, [waits], ago=200)
    published(database, [failing, kept_back], ago=100)
    failed(database, subscription.name, failing, attempts=1, wait=0)
    with database.begin() as connection:
        deliveries.hold(connection, subscription.name, [kept_back])
    send_to_queue(subscription.name, [Copy(envelope_of(database, waits))])
    assert relay.sweep() == 0


def test_an_overdue_retry_is_sent_again_only_after_another_while(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    (late,) = record(database)
    published(database, [late], ago=3600)
    failed(database, subscription.name, late, attempts=4, wait=-61)
    assert [relay.sweep(), len(taken_from(subscription.name)), relay.sweep()] == [1, 1, 0]


def test_a_copy_that_is_sent_again_says_that_a_worker_may_have_died_of_the_first(
    database: Engine, subscription: Subscription, relay: Redelivery
) -> None:
    lost, late = record(database, 2)
    published(database, [lost, late], ago=61)
    failed(database, subscription.name, late, attempts=4, wait=-61)
    assert relay.sweep() == 2
    assert [is_redelivered(copy) for copy in drain(subscription.name)] == [True, True]


def test_nothing_is_sent_to_a_subscription_that_is_removed_meanwhile(
    database: Engine,
    subscription: Subscription,
    relay: Redelivery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published(database, record(database, 2), ago=61)
    look = relay._look

    def look_then_remove(connection: Connection, name: str) -> Sequence[Row[int, bool, bool]]:
        missing = look(connection, name)
        assert missing
        removal.forget(connection, name)
        return missing

    monkeypatch.setattr(relay, "_look", look_then_remove)
    assert relay.sweep() == 0
    assert not broker.queue_depths([subscription.name]).get(subscription.name)
    register(database, subscription)
