"""`replay`: history runs again for one subscription, on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import UUID

import pytest
from click.testing import Result
from sqlalchemy import Engine, select, text, update
from sqlalchemy.orm import Session

from cos_events import replay
from cos_events.selection import EVERYTHING
from cos_events.store import deliveries
from cos_events.store.ledger import verify
from cos_events.store.models import DeliveryRow

Cli = Callable[..., Result]
AddEvent = Callable[..., UUID]


@pytest.fixture
def history(subscribe: Callable[..., None], add_event: AddEvent) -> list[UUID]:
    """Five events that `mailer` has had, the first two recorded long ago; others have not."""
    subscribe("mailer", event_types=["event_log", "order_placed"])
    subscribe("archive")
    events = [
        add_event(event_type=kind, published=60, mailer="delivered", archive="delivered")
        for kind in ("event_log", "event_log", "event_log", "order_placed", "event_log")
    ]
    add_event(event_type="not_for_mailer", published=60, archive="delivered")
    add_event()
    return events


@pytest.fixture
def rows(database: Engine) -> Callable[[str], dict[UUID, tuple[str, int]]]:
    """The state and generation of a subscription's deliveries."""

    def read(name: str = "mailer") -> dict[UUID, tuple[str, int]]:
        query = select(DeliveryRow).where(DeliveryRow.subscription == name)
        with Session(database) as session:
            return {x.event_id: (x.state, x.generation) for x in session.scalars(query)}

    return read


def test_all_that_it_had_runs_again_as_a_new_generation_and_nobody_elses(
    history: list[UUID], cli: Cli, rows: Callable[..., dict[UUID, tuple[str, int]]]
) -> None:
    result = cli("replay", "mailer")
    assert result.output == "5 events run again as the queue has room for mailer\n"
    assert rows() == dict.fromkeys(history, ("held", 1))
    assert {state for state, _ in rows("archive").values()} == {"delivered"}
    cli("replay", "mailer")
    assert set(rows().values()) == {("held", 1)}, "what waits already is left as it is"


def test_a_dry_run_only_counts(
    history: list[UUID], cli: Cli, rows: Callable[..., dict[UUID, tuple[str, int]]]
) -> None:
    before = rows()
    result = cli("replay", "mailer", "--event-type", "order_placed", "--dry-run", "--json")
    assert json.loads(result.output) == {"subscription": "mailer", "events": 1}
    assert rows() == before


def test_it_is_narrowed_by_time_type_and_module(
    history: list[UUID],
    cli: Cli,
    database: Engine,
    rows: Callable[..., dict[UUID, tuple[str, int]]],
) -> None:
    with database.begin() as connection:
        connection.execute(
            text(
                "UPDATE cos_events.outbox SET recorded_at = now() - interval '3 days' "
                "WHERE event_id = ANY(:ids)"
            ),
            {"ids": history[:2]},
        )

    def held(*options: str) -> list[UUID]:
        with database.begin() as connection:
            connection.execute(update(DeliveryRow).values(state="delivered"))
        assert cli("replay", "mailer", *options).exit_code == 0
        return [event for event in history if rows()[event][0] == "held"]

    assert held("--since", "2d") == history[2:]
    assert held("--until", "2d") == history[:2]
    assert held("--since", "2d", "--event-type", "order_placed") == [history[3]]
    assert held("--module", "pem") == []


@pytest.mark.parametrize("command", ["replay mailer", "verify", "dlq replay mailer"])
def test_a_type_of_no_event_is_doubted(command: str, history: list[UUID], cli: Cli) -> None:
    result = cli(*command.split(), "--event-type", "order_plaaced", "--json")
    said = "no retained event has type 'order_plaaced': did you mean 'order_placed'?\n"
    assert (result.exit_code, result.stderr) == (0, said)
    assert cli(*command.split(), "--event-type", "order_placed", "--json").stderr == ""


def test_a_module_of_no_event_is_doubted(history: list[UUID], cli: Cli) -> None:
    assert cli("verify", "--module", "nope").stderr == "no retained event has module 'nope'\n"


def test_what_never_had_a_delivery_row_runs_too(
    subscribe: Callable[..., None],
    add_event: AddEvent,
    cli: Cli,
    rows: Callable[..., dict[UUID, tuple[str, int]]],
) -> None:
    event = add_event(published=60)
    subscribe("mailer", starts_after=1_000)
    cli("replay", "mailer")
    assert rows() == {event: ("held", 1)}


def test_many_are_asked_about_first_and_run_in_batches(
    history: list[UUID],
    cli: Cli,
    rows: Callable[..., dict[UUID, tuple[str, int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cos_events.cli.replay.ASK_ABOVE", 4)
    monkeypatch.setattr("cos_events.replay.BATCH_SIZE", 2)
    refused = cli("replay", "mailer", input="n\n")
    assert refused.exit_code == 1
    assert "Run 5 events again for mailer?" in refused.output
    assert {state for state, _ in rows().values()} == {"delivered"}
    assert cli("replay", "mailer", "--yes").exit_code == 0
    assert len(rows()) == 5
    assert {state for state, _ in rows().values()} == {"held"}


def test_waiting_ends_when_all_are_delivered(
    history: list[UUID], cli: Cli, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deliver_one(name: str) -> int:
        left = unfinished(name)
        with database.begin() as connection:
            waiting = select(DeliveryRow.event_id).where(DeliveryRow.state == "held").limit(1)
            event = connection.scalars(waiting).first()
            connection.execute(
                update(DeliveryRow).where(DeliveryRow.event_id == event).values(state="retrying")
            )
            if event:
                deliveries.settle(connection, name, [event], 1)
        return left

    unfinished = replay.unfinished
    monkeypatch.setattr(replay, "unfinished", deliver_one)
    assert cli("replay", "mailer", "--wait").output == "5 events replayed for mailer\n"
    with database.connect() as connection:
        account = next(x for x in verify(connection, 60) if x.subscription == "mailer")
    assert account.delivered == 5


def test_an_unknown_subscription_is_a_sentence(
    cli: Cli, subscribe: Callable[..., None], sentence: Callable[[Result], str]
) -> None:
    subscribe("mailer")
    expected = "there is no subscription 'gossip'; there are: mailer"
    assert sentence(cli("replay", "gossip")) == expected


def test_a_time_that_is_none_is_a_usage_error(cli: Cli) -> None:
    result = cli("replay", "mailer", "--since", "yesterday")
    assert result.exit_code == 2
    assert "is not a point in time" in result.output


@pytest.mark.parametrize("state", ["delivered", "dead", "discarded"])
def test_whatever_has_ended_begins_anew(
    state: str,
    subscribe: Callable[..., None],
    add_event: AddEvent,
    cli: Cli,
    database: Engine,
) -> None:
    subscribe("mailer")
    event = add_event(published=60, mailer=state)
    with database.begin() as connection:
        connection.execute(update(DeliveryRow).values(deaths=5))
    cli("replay", "mailer")
    with Session(database) as session:
        row = session.get_one(DeliveryRow, ("mailer", event))
    assert (row.state, row.attempts, row.deaths, row.error) == ("held", 0, 0, None)


def test_what_is_recorded_meanwhile_is_not_part_of_it(
    history: list[UUID], add_event: AddEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "BATCH_SIZE", 4)
    more = [1, 1]

    def record(_done: int) -> None:
        if more:
            add_event(published=more.pop())

    assert replay.run_again("mailer", EVERYTHING, record) == (len(history), 0)
