"""`dlq`: dead letters are replayed from the outbox, and purged, on either broker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import UUID

import pytest
from click.testing import Result
from queues import drain
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from cos_events import Envelope, broker
from cos_events.broadcast import make_wire
from cos_events.broadcast.message import body_of
from cos_events.dead_letters import replaying
from cos_events.dead_letters.finding import find
from cos_events.errors import SubscriptionError
from cos_events.feeder import Feeder
from cos_events.store import deliveries
from cos_events.store.dead_letters import Filter
from cos_events.store.models import DeliveryRow, OutboxRow
from cos_events.topology import dead_letter_queue, declare, subscription_queue

Cli = Callable[..., Result]
AddEvent = Callable[..., UUID]
NOBODY_LISTENS = ["redis://127.0.0.1:1/0", "amqp://guest:guest@127.0.0.1:1//"]


@pytest.fixture
def name(
    broker_url: str,
    unique: Callable[[str], str],
    subscribe: Callable[..., None],
    clean_queues: list[str],
) -> str:
    """A subscription with its queue, on each broker; it has no dead-letter queue yet."""
    made = unique("sub")
    clean_queues.extend([made, f"{made}.dlq"])
    subscribe(made)
    with broker.connect() as connection:
        declare(connection, [subscription_queue(made, [], rabbitmq=broker.on_rabbitmq())])
    return made


@pytest.fixture
def row(database: Engine) -> Callable[[str, UUID], tuple[str, int]]:
    """The state and the attempts of a delivery."""

    def read(name: str, event_id: UUID) -> tuple[str, int]:
        with Session(database) as session:
            found = session.get(DeliveryRow, (name, event_id))
            assert found
            return found.state, found.attempts

    return read


@pytest.fixture
def dead_letter(subscribe: Callable[..., None], add_event: AddEvent, cli: Cli) -> Callable[[], str]:
    """What is said of the only dead letter of `mailer`."""
    subscribe("mailer")
    event = add_event(published=60, mailer="dead")

    def listed() -> str:
        output = cli("dlq", "list", "mailer", "--json").output
        assert [letter["event_id"] for letter in json.loads(output)] == [str(event)]
        return output

    return listed


@pytest.fixture
def feed(database: Engine) -> Iterator[Callable[[], int]]:
    """What a publisher's relay does with what is held."""
    with closing(make_wire()) as wire:
        yield Feeder(database, wire, 1_000, lost_after=60).sweep


def drained(queue: str) -> list[bytes]:
    """Everything on a queue, taken off it."""
    return [body_of(message) for message in drain(queue)]


def bury(database: Engine, name: str, *bodies: UUID | bytes, **headers: str) -> None:
    """Put copies of events, or any bytes, on the dead-letter queue."""
    queue = dead_letter_queue(name, rabbitmq=broker.on_rabbitmq())
    with broker.connect() as connection, Session(database) as session:
        producer = connection.Producer(auto_declare=False)
        for body in bodies:
            if isinstance(body, UUID):
                found = select(OutboxRow.envelope).where(OutboxRow.event_id == body)
                body = session.scalars(found).one().encode()  # noqa: PLW2901 - the bytes meant
            producer.publish(
                body,
                routing_key=queue.name,
                declare=[queue],
                content_type="application/octet-stream",
                content_encoding="binary",
                headers=headers,
            )


@pytest.mark.parametrize("command", ["list", "replay"])
def test_an_unknown_subscription_names_those_there_are(
    command: str, subscribe: Callable[..., None], cli: Cli, sentence: Callable[[Result], str]
) -> None:
    expected = "there is no subscription 'gossip'; there are: "
    assert sentence(cli("dlq", command, "gossip")) == f"{expected}none"
    subscribe("mailer")
    assert sentence(cli("dlq", command, "gossip")) == f"{expected}mailer"


def test_replay_gives_a_dead_letter_its_first_day_back(
    name: str,
    add_event: AddEvent,
    cli: Cli,
    row: Callable[[str, UUID], tuple[str, int]],
    feed: Callable[[], int],
) -> None:
    dead = [add_event(published=60, **{name: "dead"}) for _ in range(2)]
    others = {
        state: add_event(published=60, **{name: state}) for state in ("retrying", "delivered")
    }
    result = cli("dlq", "replay", name)
    assert (result.exit_code, result.output) == (0, f"2 replayed to {name}\n")
    assert [row(name, event) for event in dead] == [("held", 0)] * 2
    assert [row(name, event) for event in others.values()] == [(state, 3) for state in others]
    assert feed() == 2
    envelopes = [Envelope.decode(body) for body in drained(name)]
    assert [each.base_log_id for each in envelopes] == dead
    assert envelopes[0].data == {"message": "hello"}
    assert cli("dlq", "replay", name).output == f"0 replayed to {name}\n"


def test_replay_forgets_the_deaths_of_what_killed_its_workers(
    subscribe: Callable[..., None], add_event: AddEvent, cli: Cli, database: Engine
) -> None:
    subscribe("mailer")
    event = add_event(published=60, mailer="dead")
    with Session(database) as session, session.begin():
        session.get_one(DeliveryRow, ("mailer", event)).deaths = 5
    assert cli("dlq", "replay", "mailer").exit_code == 0
    with Session(database) as session:
        assert session.get_one(DeliveryRow, ("mailer", event)).deaths == 0


def test_replay_takes_its_copies_off_the_dead_letter_queue_and_no_others(
    name: str, add_event: AddEvent, cli: Cli, database: Engine
) -> None:
    first, second, third = (add_event(published=60, **{name: "dead"}) for _ in range(3))
    bury(database, name, b"no envelope \xff", first, second, first, third)
    result = cli("dlq", "replay", name, "--event", first, "--event", third, "--json")
    assert json.loads(result.output) == {
        "subscription": name,
        "replayed": [str(first), str(third)],
    }
    left = drained(f"{name}.dlq")
    assert left.pop(left.index(b"no envelope \xff"))
    assert [Envelope.decode(body).base_log_id for body in left] == [second]


def test_replay_needs_no_dead_letter_queue(
    name: str, add_event: AddEvent, cli: Cli, database: Engine, feed: Callable[[], int]
) -> None:
    event = add_event(published=60, **{name: "dead"})
    bury(database, name, event)
    broker.delete_queues([f"{name}.dlq"])
    assert cli("dlq", "replay", name).exit_code == 0
    assert feed() == 1


def test_replay_keeps_to_its_limit_oldest_first_and_to_the_events_named(
    name: str, add_event: AddEvent, cli: Cli, row: Callable[[str, UUID], tuple[str, int]]
) -> None:
    first, second, third = (add_event(published=60, **{name: "dead"}) for _ in range(3))
    cli("dlq", "replay", name, "--limit", 1)
    assert row(name, first) == ("held", 0)
    assert row(name, second) == row(name, third) == ("dead", 3)
    result = cli("dlq", "replay", name, "--event", third, "--json")
    assert json.loads(result.output)["replayed"] == [str(third)]
    assert row(name, second) == ("dead", 3)


@pytest.mark.parametrize("command", [("replay",), ("replay", "--dry-run"), ("purge", "--yes")])
def test_an_event_that_is_no_dead_letter_is_a_sentence_and_nothing_changes(
    command: tuple[str, ...],
    subscribe: Callable[..., None],
    add_event: AddEvent,
    cli: Cli,
    sentence: Callable[[Result], str],
    row: Callable[[str, UUID], tuple[str, int]],
) -> None:
    subscribe("mailer")
    dead = add_event(published=60, mailer="dead")
    delivered = add_event(published=60, mailer="delivered")
    said = sentence(cli("dlq", *command, "mailer", "--event", dead, "--event", delivered))
    assert said == f"mailer has no dead letter {delivered}: see `dlq list`"
    assert row("mailer", dead) == ("dead", 3)


@pytest.mark.parametrize("url", NOBODY_LISTENS, ids=["redis", "rabbitmq"])
def test_a_replay_works_while_the_broker_is_away(
    url: str,
    subscribe: Callable[..., None],
    add_event: AddEvent,
    cli: Cli,
    row: Callable[[str, UUID], tuple[str, int]],
    environment: Callable[..., None],
) -> None:
    subscribe("mailer")
    event = add_event(published=60, mailer="dead")
    environment(BROKER_URL=url)
    assert cli("dlq", "replay", "mailer").exit_code == 0
    assert row("mailer", event) == ("held", 0)


def test_more_dead_letters_than_a_page_are_listed_and_replayed_in_order(
    subscribe: Callable[..., None],
    add_event: AddEvent,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cos_events.dead_letters.finding.PAGE", 2)
    monkeypatch.setattr("cos_events.dead_letters.replaying.BATCH_SIZE", 2)
    subscribe("mailer")
    subscribe("archive")
    dead = [str(add_event(published=60, mailer="dead", archive="dead")) for _ in range(5)]
    letters = json.loads(cli("dlq", "list", "--json").output)
    assert [(x["event_id"], x["subscription"]) for x in letters] == [
        (event, name) for event in dead for name in ("archive", "mailer")
    ]
    assert json.loads(cli("dlq", "replay", "mailer", "--json").output)["replayed"] == dead


def test_a_corrected_payload_goes_out_and_the_original_is_kept(
    name: str, add_event: AddEvent, cli: Cli, database: Engine, feed: Callable[[], int]
) -> None:
    event = add_event(published=60, **{name: "dead"})
    other = add_event(published=60, **{name: "dead"})
    result = cli("dlq", "replay", name, "--edit", event, "--data", "-", input='{"message": "bye"}')
    assert result.output == f"1 replayed to {name}\n"
    assert feed() == 1
    (envelope,) = map(Envelope.decode, drained(name))
    assert (envelope.base_log_id, envelope.data) == (event, {"message": "bye"})
    with Session(database) as session:
        original = select(OutboxRow.envelope).where(OutboxRow.event_id == event)
        assert Envelope.decode(session.scalars(original).one()).data == {"message": "hello"}
        assert session.get_one(DeliveryRow, (name, other)).state == "dead"


def test_of_two_people_who_correct_one_letter_the_second_is_told(
    dead_letter: Callable[[], str],
) -> None:
    event = UUID(json.loads(dead_letter())[0]["event_id"])
    (found,) = find(Filter("mailer", [event]))
    (found_by_another,) = find(Filter("mailer", [event]))
    replaying.correct(found_by_another, {"message": "first"})
    with pytest.raises(SubscriptionError, match=f"else has corrected it: see `dlq show {event}`"):
        replaying.correct(found, {"message": "second"})
    assert json.loads(dead_letter())[0]["correction"]["data"] == {"message": "first"}


@pytest.mark.parametrize("command", ["replay", "purge"])
def test_a_dead_letter_that_a_handler_has_at_this_moment_is_left_out_and_counted(
    command: str, subscribe: Callable[..., None], add_event: AddEvent, cli: Cli, database: Engine
) -> None:
    subscribe("mailer")
    taken, _ = (add_event(published=60, mailer="dead") for _ in range(2))
    with database.begin() as batch:
        assert not deliveries.settle(batch, "mailer", [taken], 1), "a second copy runs nothing"
        result = cli("dlq", command, "mailer", input="y\n")
    assert result.stdout.startswith("1 ")
    assert result.stderr.endswith("1 are being handled right now and were left out\n")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "the new data is not JSON"),
        ("[" * 100_000, "the new data is not JSON"),
        ("[1]", "the new data must be a JSON object"),
        ('{"a": NaN}', "data.a: Input should be a finite number"),
        ('{"a": "\\u0000"}', "data.a holds a NUL character"),
    ],
)
def test_a_correction_that_cannot_be_sent_is_refused_and_nothing_changes(
    data: str,
    says: str,
    dead_letter: Callable[[], str],
    cli: Cli,
    sentence: Callable[[Result], str],
) -> None:
    before = dead_letter()
    event = json.loads(before)[0]["event_id"]
    result = cli("dlq", "replay", "mailer", "--edit", event, "--data", "-", input=data)
    assert says in sentence(result)
    assert dead_letter() == before


def test_an_editor_is_not_waited_for_where_nobody_can_use_it(
    dead_letter: Callable[[], str], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    before = dead_letter()
    result = cli("dlq", "replay", "mailer", "--edit", json.loads(before)[0]["event_id"])
    assert result.exit_code == 2
    assert "there is no terminal to edit on: give the new data with --data" in result.output
    assert dead_letter() == before


def test_new_data_without_an_event_replays_nothing(
    subscribe: Callable[..., None], add_event: AddEvent, cli: Cli, row: Callable[..., Any]
) -> None:
    subscribe("mailer")
    dead = add_event(published=60, mailer="dead")
    result = cli("dlq", "replay", "mailer", "--data", "-", input="{}")
    assert result.exit_code == 2
    assert "--data goes with --edit EVENT" in result.output
    assert row("mailer", dead)[0] == "dead"


def test_purging_drops_for_good_and_the_ledger_says_so(
    subscribe: Callable[..., None],
    add_event: AddEvent,
    cli: Cli,
    row: Callable[[str, UUID], tuple[str, int]],
) -> None:
    subscribe("mailer")
    dead, kept = (add_event(published=60, mailer="dead") for _ in range(2))
    asked = cli("dlq", "purge", "mailer", "--event", dead, input="n\n")
    assert asked.exit_code == 1
    assert "Drop 1 dead letter of mailer for good? [y/N]: " in asked.output
    assert row("mailer", dead) == ("dead", 3)
    assert cli("dlq", "purge", "mailer", "--event", dead, "--yes").output == (
        "1 purged from mailer\n"
    )
    assert row("mailer", dead) == ("discarded", 3)
    assert row("mailer", kept) == ("dead", 3)


def test_messages_that_are_no_envelopes_are_shown_and_dropped_from_the_broker(
    name: str, add_event: AddEvent, cli: Cli, database: Engine
) -> None:
    event = add_event(published=60, **{name: "dead"})
    bury(database, name, b"no envelope \xff", event, b"{}")
    found = json.loads(cli("dlq", "list", name, "--unusable", "--json").output)
    assert [each["body"] for each in found] == ["no envelope \\xff", "{}"]
    assert cli("dlq", "purge", name, "--unusable", "--yes").output == f"2 purged from {name}\n"
    assert [Envelope.decode(body).base_log_id for body in drained(f"{name}.dlq")] == [event]


def test_messages_that_are_no_envelopes_are_listed_oldest_first_each_time(
    name: str, cli: Cli, database: Engine
) -> None:
    for second in (3, 1, 2):
        bury(database, name, str(second).encode(), died_at=f"2026-11-29T16:22:0{second}.500000Z")
    for _ in range(2):
        found = json.loads(cli("dlq", "list", name, "--unusable", "--json").output)
        assert [each["body"] for each in found] == ["1", "2", "3"]
    limited = cli("dlq", "list", name, "--unusable", "--limit", 1).output
    assert limited.splitlines()[1].startswith("2026-11-29 16:22:01Z ")
    assert len(limited.splitlines()) == 2


def test_a_dry_run_says_how_each_would_end_and_writes_nothing(
    subscribe: Callable[..., None],
    add_event: AddEvent,
    cli: Cli,
    database: Engine,
    row: Callable[[str, UUID], tuple[str, int]],
) -> None:
    subscribe("activity")
    fine = add_event(published=60, activity="dead")
    result = cli("dlq", "replay", "activity", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output) == [{"event_id": str(fine), "ending": "delivered"}]
    assert row("activity", fine) == ("dead", 3)
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM cos_l2.activity")) == 0


@pytest.mark.parametrize(
    "options",
    [
        ("list", "--older-than", "1d"),
        ("list", "--event-type", "event_log"),
        ("purge", "--error", "OSError"),
        ("purge", "--limit", "1"),
    ],
)
def test_unusable_messages_are_chosen_by_no_filter(
    name: str, cli: Cli, database: Engine, options: tuple[str, ...]
) -> None:
    bury(database, name, b"no envelope")
    result = cli("dlq", options[0], name, "--unusable", *options[1:], input="y\n")
    assert result.exit_code == 2
    assert "it takes no filter" in result.output
    assert drained(f"{name}.dlq") == [b"no envelope"]


def test_an_event_that_is_no_uuid_is_a_usage_error(cli: Cli) -> None:
    result = cli("dlq", "replay", "mailer", "--event", "seven")
    assert result.exit_code == 2
    assert "seven" in result.output
