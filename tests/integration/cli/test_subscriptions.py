"""`subscriptions`: list, pause, resume, and end one for good."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pytest
from click.testing import Result
from locks import waits_for_a_lock
from sqlalchemy import Engine, delete, func, select, update

from cos_events import broker, pause
from cos_events.errors import SubscriptionError
from cos_events.store import held, locks, outbox, pauses, removal, subscriptions
from cos_events.store.engine import wait_at_most
from cos_events.store.models import AT_ONCE, DeliveryRow, OutboxRow, SubscriptionRow
from cos_events.subscription import Subscription
from cos_events.topology import declare, subscription_queue

Cli = Callable[..., Result]
AddEvent = Callable[..., UUID]


def names(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(select(SubscriptionRow.name).order_by(SubscriptionRow.name)))


def test_the_list_shows_what_each_wants_and_how_it_is(
    cli: Cli, subscribe: Callable[..., None]
) -> None:
    subscribe("mailer", event_types=["order_placed"], modules=["shop"])
    subscribe("archive", holding=True)
    archive, mailer = json.loads(cli("subscriptions", "list", "--json").output)
    assert (archive["subscription"], archive["condition"], archive["modules"]) == (
        "archive",
        "holding",
        None,
    )
    assert (mailer["event_types"], mailer["condition"]) == (["order_placed"], "live")
    table = cli("subscriptions", "list").output
    assert "order_placed" in table
    assert "all" in table


def test_a_pause_by_hand_stays_until_it_is_resumed(
    cli: Cli, subscribe: Callable[..., None], database: Engine
) -> None:
    subscribe("mailer")
    result = cli("subscriptions", "pause", "mailer", "--because", "the office moves")
    assert result.output.startswith("mailer is paused: the office moves; resume it with")
    pause.forget()
    assert pause.state("mailer") == "paused"
    (row,) = json.loads(cli("status", "--json").output)["subscriptions"]
    assert row["condition"] == "paused: the office moves"
    assert cli("subscriptions", "resume", "mailer").output == "mailer has resumed\n"
    assert cli("subscriptions", "resume", "mailer").output == "mailer was not paused\n"
    pause.forget()
    assert pause.state("mailer") == "running"


def test_a_second_pause_keeps_its_reason_unless_another_is_given(
    cli: Cli, subscribe: Callable[..., None], database: Engine
) -> None:
    def paused(*options: str) -> str:
        return cli("subscriptions", "pause", "mailer", *options).output.partition(";")[0]

    subscribe("mailer")
    with database.begin() as connection:
        pauses.pause(connection, "mailer", "an outage")
    assert paused() == "mailer is paused: by hand"
    assert paused("--because", "the office moves") == "mailer was paused already: the office moves"
    assert paused() == "mailer was paused already: the office moves"
    (row,) = json.loads(cli("status", "--json").output)["subscriptions"]
    assert row["condition"] == "paused: the office moves"


def test_several_are_paused_and_resumed_together_or_none(
    cli: Cli, subscribe: Callable[..., None], sentence: Callable[[Result], str]
) -> None:
    def conditions() -> list[str]:
        listed = json.loads(cli("subscriptions", "list", "--json").output)
        return [each["condition"] for each in listed]

    for name in ("archive", "mailer"):
        subscribe(name)
    assert "there is no subscription 'mail'" in sentence(
        cli("subscriptions", "pause", "archive", "mail")
    )
    assert conditions() == ["live", "live"]
    paused = cli("subscriptions", "pause", "archive", "mailer", "--because", "a move").output
    assert [line.partition(":")[0] for line in paused.splitlines()] == [
        *("archive is paused", "mailer is paused")
    ]
    assert conditions() == ["paused: a move"] * 2
    cli("subscriptions", "pause", "archive")
    assert conditions() == ["paused: a move"] * 2
    resumed = cli("subscriptions", "resume", "mailer", "archive").output
    assert resumed.splitlines() == ["mailer has resumed", "archive has resumed"]
    assert conditions() == ["live", "live"]


@pytest.mark.parametrize("command", ["dlq purge", "subscriptions remove", "replay"])
def test_a_question_that_nobody_can_answer_names_the_option(
    command: str,
    cli: Cli,
    subscribe: Callable[..., None],
    add_event: AddEvent,
    sentence: Callable[[Result], str],
    redis_broker: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cos_events.cli.replay.ASK_ABOVE", 0)
    subscribe("mailer")
    add_event(published=60, mailer="dead")
    assert sentence(cli(*command.split(), "mailer")) == (
        "there is no terminal to answer on: use --yes"
    )


@pytest.fixture
def removable(
    broker_url: str,
    unique: Callable[[str], str],
    subscribe: Callable[..., None],
    add_event: AddEvent,
    clean_queues: list[str],
) -> str:
    """One with a queue, and events in every state."""
    name = unique("sub")
    clean_queues.append(name)
    subscribe(name)
    subscribe("other")
    with broker.connect() as connection:
        declare(connection, [subscription_queue(name, (), rabbitmq=broker.on_rabbitmq())])
    for state in ("delivered", "held", "retrying", "dead", "dead"):
        add_event(published=60, **{name: state, "other": "delivered"})
    add_event(published=60)
    add_event()
    return name


def test_removing_says_first_what_is_left_undelivered_and_asks(
    removable: str, cli: Cli, database: Engine
) -> None:
    result = cli("subscriptions", "remove", removable, input="n\n")
    assert result.exit_code == 1
    said = result.output
    assert f"{removable} leaves undelivered:" in said
    for part in ("1 held", "1 retrying", "2 dead", "2 waiting"):
        assert part in said
    assert names(database) == ["other", removable]


def test_a_removed_subscription_leaves_no_row_no_queue_and_no_deliveries(
    removable: str, cli: Cli, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cos_events.cli.subscriptions.BATCH_SIZE", 2)
    result = cli("subscriptions", "remove", removable, "--yes", "--json")
    report = json.loads(result.output)
    assert report["deliveries_dropped"] == 5
    assert report["undelivered"] == {"held": 1, "retrying": 1, "dead": 2, "waiting": 2}
    assert names(database) == ["other"]
    assert not broker.queue_depths([removable]).get(removable)
    with database.connect() as connection:
        counted = select(DeliveryRow.subscription, func.count()).group_by(DeliveryRow.subscription)
        assert [tuple(row) for row in connection.execute(counted)] == [("other", 5)]


def test_with_the_broker_away_it_says_which_queue_is_left(
    cli: Cli, subscribe: Callable[..., None], database: Engine, environment: Callable[..., None]
) -> None:
    subscribe("mailer")
    environment(BROKER_URL="redis://127.0.0.1:1/0")
    result = cli("subscriptions", "remove", "mailer", "--yes")
    assert result.exit_code == 0
    assert "its queue remains: delete mailer on the broker" in result.output
    assert names(database) == []


@pytest.mark.parametrize("command", ["pause", "resume", "remove"])
def test_an_unknown_subscription_is_a_sentence(
    command: str, database: Engine, cli: Cli, sentence: Callable[[Result], str]
) -> None:
    expected = "there is no subscription 'gossip'; there are: none"
    assert sentence(cli("subscriptions", command, "gossip")) == expected


def test_what_waits_is_counted_without_looking_at_history(
    subscribe: Callable[..., None], add_event: AddEvent, database: Engine
) -> None:
    add_event(published=60)
    with database.connect() as connection:
        subscribe("mailer", settled_through=connection.scalar(select(func.max(OutboxRow.id))))
    add_event()
    with database.connect() as connection:
        assert removal.undelivered(connection, "mailer") == {"waiting": 1}


def test_what_an_interrupted_removal_left_is_removed_by_the_next(
    removable: str, database: Engine, add_event: AddEvent, cli: Cli
) -> None:
    add_event(published=60, **{removable: "delivered"})
    forget(database, removable)
    done = cli("subscriptions", "remove", removable, "-y", "--json")
    assert json.loads(done.stdout)["deliveries_dropped"] >= 1
    assert cli("subscriptions", "remove", removable, "-y").exit_code == 1


def forget(database: Engine, name: str) -> None:
    with database.begin() as connection:
        removal.forget(connection, name)


def test_a_name_is_not_known_again_before_its_removal_has_ended(
    removable: str, database: Engine, cli: Cli
) -> None:
    forget(database, removable)
    again = Subscription(removable)
    with database.begin() as connection, pytest.raises(SubscriptionError, match="being removed"):
        subscriptions.register(connection, [again])
    assert cli("subscriptions", "remove", removable, "-y").exit_code == 0
    with database.begin() as connection:
        subscriptions.register(connection, [again])


def test_what_is_known_again_loses_no_delivery_to_the_last_removal(
    removable: str, database: Engine
) -> None:
    with database.begin() as connection:
        assert removal.drop_deliveries(connection, removable, 10) == 0
        connection.execute(delete(SubscriptionRow).where(SubscriptionRow.name == removable))
        assert removal.drop_deliveries(connection, removable, 10) == 5


def test_a_removal_lets_a_feeder_that_is_at_work_decide_to_hold(
    removable: str, database: Engine, eventually: Callable[..., None]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with database.begin() as feeding:
            locks.subscription(feeding, removable)
            forgotten = pool.submit(forget, database, removable)
            eventually(lambda: waits_for_a_lock(database))
            # Over a second connection, as the feeder does: PostgreSQL sees no circle in that.
            with database.begin() as deciding:
                wait_at_most(deciding, 5_000)
                held.start_holding(deciding, removable)
        forgotten.result(timeout=30)
    assert removable not in names(database)


def test_a_feeder_that_found_it_before_feeds_nothing_to_what_is_removed(
    removable: str, database: Engine
) -> None:
    with database.begin() as connection:
        connection.execute(update(DeliveryRow).values(next_attempt_at=AT_ONCE))
        assert [row.name for row in held.with_due(connection)] == [removable]
    forget(database, removable)
    with database.begin() as connection:
        assert held.release(connection, removable, 10, timedelta(seconds=60)) == []


def test_a_removal_waits_for_publishers_that_know_of_the_subscription(
    removable: str, database: Engine, add_event: AddEvent, eventually: Callable[..., None]
) -> None:
    add_event()

    with ThreadPoolExecutor(1) as pool:
        with database.begin() as publishing:
            assert outbox.claim(publishing, 10)
            forgotten = pool.submit(forget, database, removable)
            eventually(lambda: waits_for_a_lock(database))
            assert not forgotten.done()
        forgotten.result(timeout=30)
    assert removable not in names(database)
