"""`show`: one event, and what became of it at each subscription."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from click.testing import Result
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from cos_events.broadcast import Copy, send_to_queue
from cos_events.store.models import AT_ONCE, DeliveryRow, RetentionRow

Outcomes = dict[str, tuple[str, str]]


@pytest.fixture
def outcomes(cli: Callable[..., Result]) -> Callable[[UUID], Outcomes]:
    """The state of an event at each subscription, and why it has that."""

    def read(event_id: UUID) -> Outcomes:
        shown = json.loads(cli("show", event_id, "--json").stdout)
        return {
            each["subscription"]: (each["state"], each["why"]) for each in shown["subscriptions"]
        }

    return read


@pytest.fixture
def hold(database: Engine) -> Callable[..., None]:
    """Let an event wait at a subscription."""

    def write(event_id: UUID, name: str, **columns: object) -> None:
        with Session(database) as session, session.begin():
            row = session.get_one(DeliveryRow, (name, event_id))
            for column, value in {"state": "held", "error": None, **columns}.items():
                setattr(row, column, value)

    return write


def test_show_prints_the_envelope_and_a_line_for_each_subscription(
    subscribe: Callable[..., None],
    add_event: Callable[..., UUID],
    cli: Callable[..., Result],
) -> None:
    subscribe("archive")
    subscribe("mailer")
    event_id = add_event(published=1, archive="delivered", mailer="dead")
    result = cli("show", event_id)
    assert result.exit_code == 0
    envelope, rest = result.output.split("\n}\n")
    assert json.loads(envelope + "}")["base_log_id"] == str(event_id)
    *times, archive, mailer = rest.split("\n")[1:-1]
    assert [line.split()[0] for line in times if line] == ["recorded", "published", "subscription"]
    assert archive.split()[:3] == ["archive", "delivered", "3"]
    assert mailer.split()[:3] == ["mailer", "dead", "3"]
    assert mailer.endswith("ValueError: no good")


def test_what_a_subscription_has_not_had_is_waiting_in_flight_or_missing(
    subscribe: Callable[..., None],
    add_event: Callable[..., UUID],
    outcomes: Callable[[UUID], Outcomes],
) -> None:
    subscribe("mailer")
    assert outcomes(add_event())["mailer"] == ("waiting", "not published yet")
    assert outcomes(add_event(published=1))["mailer"] == ("in_flight", "")
    state, why = outcomes(add_event(published=3600))["mailer"]
    assert (state, why.partition(":")[0]) == ("missing", "published, and not heard of since")


def test_what_is_late_in_a_queue_is_in_flight(
    redis_broker: str,
    subscribe: Callable[..., None],
    add_event: Callable[..., UUID],
    outcomes: Callable[[UUID], Outcomes],
) -> None:
    subscribe("mailer")
    event_id = add_event(published=3600)
    send_to_queue("mailer", [Copy("{}", 0)])
    assert outcomes(event_id)["mailer"] == ("in_flight", "its queue has 1 messages")


def test_a_broker_that_is_away_is_no_reason_to_show_nothing(
    subscribe: Callable[..., None],
    add_event: Callable[..., UUID],
    outcomes: Callable[[UUID], Outcomes],
    environment: Callable[..., None],
) -> None:
    subscribe("mailer")
    environment(BROKER_URL="redis://127.0.0.1:1/0")
    state, why = outcomes(add_event(published=3600))["mailer"]
    assert state == "missing"
    assert why.endswith("once the broker answers")


def test_history_waits_for_its_turn(
    subscribe: Callable[..., None],
    add_event: Callable[..., UUID],
    outcomes: Callable[[UUID], Outcomes],
) -> None:
    event_id = add_event(published=3600)
    subscribe("late", backfill_until=10**9)
    assert outcomes(event_id)["late"] == ("waiting", "its turn in the history has not come")


def test_what_is_not_wanted_says_why(
    subscribe: Callable[..., None],
    add_event: Callable[..., UUID],
    outcomes: Callable[[UUID], Outcomes],
) -> None:
    subscribe("of_ops", modules=["ops"])
    subscribe("prompts", event_types=["prompt_trace"])
    subscribe("tomorrow", starts_after=10**9)
    assert outcomes(add_event(published=1)) == {
        "of_ops": ("not_wanted", "it wants other modules"),
        "prompts": ("not_wanted", "it wants other event types"),
        "tomorrow": ("not_wanted", "recorded before the subscription began"),
    }


def test_what_is_held_says_what_it_waits_for(
    subscribe: Callable[..., None],
    add_event: Callable[..., UUID],
    hold: Callable[..., None],
    outcomes: Callable[[UUID], Outcomes],
) -> None:
    now = datetime.now(UTC)
    subscribe("paused", paused_until=now, paused_because="by hand")
    subscribe("full", holding=True)
    subscribe("in_order")
    names = ("paused", "full", "in_order")
    first, second = (add_event(published=1, **dict.fromkeys(names, "held")) for _ in range(2))
    for name in names:
        for event_id in (first, second):
            key = "ann" if name == "in_order" else None
            hold(event_id, name, next_attempt_at=AT_ONCE, order_key=key)
    assert outcomes(second) == {
        "paused": ("held", "paused: by hand"),
        "full": ("held", "its queue is full"),
        "in_order": ("held", "another event of its key comes first"),
    }
    assert outcomes(first)["in_order"] == ("held", "")


def test_a_retry_that_is_held_until_its_time_says_when_and_the_error(
    subscribe: Callable[..., None],
    add_event: Callable[..., UUID],
    hold: Callable[..., None],
    cli: Callable[..., Result],
) -> None:
    subscribe("mailer", holding=True)
    event_id = add_event(published=1, mailer="held")
    later = datetime.now(UTC) + timedelta(hours=1)
    hold(event_id, "mailer", next_attempt_at=later, error="OSError: away")
    (shown,) = json.loads(cli("show", event_id, "--json").stdout)["subscriptions"]
    assert shown["why"] == "OSError: away"
    assert datetime.fromisoformat(shown["next_attempt_at"]) == later


def test_what_was_replayed_or_corrected_says_so(
    subscribe: Callable[..., None],
    add_event: Callable[..., UUID],
    hold: Callable[..., None],
    outcomes: Callable[[UUID], Outcomes],
) -> None:
    names = ("once", "often", "mended")
    for name in names:
        subscribe(name)
    event_id = add_event(published=1, **dict.fromkeys(names, "delivered"))
    for name, columns in zip(
        names, ({"generation": 1}, {"generation": 3}, {"correction": "{}"}), strict=True
    ):
        hold(event_id, name, state="delivered", **columns)
    assert outcomes(event_id) == {
        "once": ("delivered", "replayed once by `cos-events replay`"),
        "often": ("delivered", "replayed 3 times by `cos-events replay`"),
        "mended": ("delivered", "with a corrected payload"),
    }


def test_an_event_that_is_not_there_says_whether_some_were_dropped(
    database: Engine, cli: Callable[..., Result], sentence: Callable[[Result], str]
) -> None:
    event_id = uuid4()
    assert sentence(cli("show", event_id)) == f"no event {event_id} is recorded here"
    with Session(database) as session, session.begin():
        when = datetime(2026, 11, 25, tzinfo=UTC)
        session.execute(update(RetentionRow).values(dropped_before=when))
    assert sentence(cli("show", event_id)).endswith(
        "most events before 2026-11-25 00:00:00Z were dropped"
    )


def test_an_event_nobody_subscribes_to_is_shown(
    add_event: Callable[..., UUID], cli: Callable[..., Result]
) -> None:
    assert "no subscriptions yet" in cli("show", add_event()).output


def test_what_is_no_id_is_refused(cli: Callable[..., Result]) -> None:
    result = cli("show", "order-7")
    assert result.exit_code == 2
    assert "'order-7' is not a valid UUID" in result.output
