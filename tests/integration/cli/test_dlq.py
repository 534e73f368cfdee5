"""`dlq`: dead letters are listed, and replayed from the outbox on either broker."""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from click.testing import Result
from kombu import Queue
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from cos_events import Envelope, broker
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


def drained(queue: str) -> list[bytes]:
    """Everything on a queue, taken off it."""
    with broker.connect() as connection, connection.channel() as channel:
        return [
            broker.body_of(message)
            for message in iter(lambda: Queue(queue, channel=channel).get(no_ack=True), None)
        ]


def bury(database: Engine, name: str, *bodies: UUID | bytes) -> None:
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
            )


@pytest.mark.parametrize("command", ["list", "replay"])
def test_an_unknown_subscription_names_those_there_are(
    command: str, subscribe: Callable[..., None], cli: Cli, sentence: Callable[[Result], str]
) -> None:
    expected = "there is no subscription 'gossip'; there are: "
    assert sentence(cli("dlq", command, "gossip")) == f"{expected}none"
    subscribe("mailer")
    assert sentence(cli("dlq", command, "gossip")) == f"{expected}mailer"


def test_the_list_shows_dead_letters_oldest_first_and_whole(
    subscribe: Callable[..., None], add_event: AddEvent, cli: Cli
) -> None:
    subscribe("mailer")
    dead = [add_event(published=60, mailer="dead", archive="dead") for _ in range(3)]
    add_event(published=60, mailer="retrying", archive="dead")
    letters = json.loads(cli("dlq", "list", "mailer", "--json").output)
    assert [letter["event_id"] for letter in letters] == list(map(str, dead))
    assert {letter["attempts"] for letter in letters} == {3}
    assert letters[0]["error"] == "ValueError: no good"
    limited = json.loads(cli("dlq", "list", "mailer", "--json", "--limit", 2).output)
    assert limited == letters[:2]


@pytest.mark.parametrize("error", ["ValueError: no good", "ValueError: no [/good] [or bad]"])
def test_the_table_of_dead_letters_can_be_searched(
    error: str, subscribe: Callable[..., None], add_event: AddEvent, cli: Cli
) -> None:
    subscribe("mailer")
    event = add_event(published=60, error=error, mailer="dead")
    result = cli("dlq", "list", "mailer")
    assert result.exception is None
    assert any(str(event) in line for line in result.output.splitlines()), result.output
    assert error in " ".join(result.output.split())


def test_replay_gives_a_dead_letter_its_first_day_back(
    name: str,
    add_event: AddEvent,
    cli: Cli,
    row: Callable[[str, UUID], tuple[str, int]],
    database: Engine,
) -> None:
    dead = [add_event(published=60, **{name: "dead"}) for _ in range(2)]
    others = {
        state: add_event(published=60, **{name: state}) for state in ("retrying", "delivered")
    }
    result = cli("dlq", "replay", name)
    assert (result.exit_code, result.output) == (0, f"2 replayed to {name}\n")
    assert [row(name, event) for event in dead] == [("retrying", 0)] * 2
    assert [row(name, event) for event in others.values()] == [(state, 3) for state in others]
    envelopes = [Envelope.decode(body) for body in drained(name)]
    assert [each.base_log_id for each in envelopes] == dead
    assert envelopes[0].data == {"message": "hello"}
    assert cli("dlq", "replay", name).output == f"0 replayed to {name}\n"
    assert drained(name) == []


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
    name: str, add_event: AddEvent, cli: Cli, database: Engine
) -> None:
    event = add_event(published=60, **{name: "dead"})
    bury(database, name, event)
    broker.delete_queues([f"{name}.dlq"])
    assert cli("dlq", "replay", name).exit_code == 0
    assert len(drained(name)) == 1


def test_replay_keeps_to_its_limit_oldest_first_and_to_the_events_named(
    name: str, add_event: AddEvent, cli: Cli, row: Callable[[str, UUID], tuple[str, int]]
) -> None:
    first, second, third = (add_event(published=60, **{name: "dead"}) for _ in range(3))
    cli("dlq", "replay", name, "--limit", 1)
    assert row(name, first) == ("retrying", 0)
    assert row(name, second) == row(name, third) == ("dead", 3)
    result = cli("dlq", "replay", name, "--event", third, "--event", uuid4(), "--json")
    assert json.loads(result.output)["replayed"] == [str(third)]
    assert row(name, second) == ("dead", 3)


def test_an_event_that_is_no_uuid_is_a_usage_error(cli: Cli) -> None:
    result = cli("dlq", "replay", "mailer", "--event", "seven")
    assert result.exit_code == 2
    assert "seven" in result.output


@pytest.mark.parametrize("url", NOBODY_LISTENS, ids=["redis", "rabbitmq"])
def test_with_the_broker_away_dead_letters_stay_as_they_were(
    url: str,
    dead_letter: Callable[[], str],
    cli: Cli,
    sentence: Callable[[Result], str],
    environment: Callable[..., None],
) -> None:
    before = dead_letter()
    environment(BROKER_URL=url)
    assert "did not take the messages" in sentence(cli("dlq", "replay", "mailer"))
    assert dead_letter() == before
