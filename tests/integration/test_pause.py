"""A subscriber whose own servers are down is paused and probed; no attempt is used up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from cos_events import Envelope, pause
from cos_events.broadcast import make_wire
from cos_events.declaration import subscriber
from cos_events.errors import SubscriptionError
from cos_events.feeder import Feeder
from cos_events.store import deliveries, pauses
from cos_events.store.models import DeliveryRow, SubscriptionRow

if TYPE_CHECKING:
    from conftest import Bus


class GraphAway(Exception):
    """What the subscriber's own graph database raises when it is down."""


class Graph:
    """A handler's own server; counts the calls."""

    def __init__(self) -> None:
        self.up = False
        self.error: type[Exception] = GraphAway
        self.had: list[int] = []
        self.calls = 0

    def handle(self, message: Envelope) -> None:
        self.calls += 1
        if not self.up:
            raise self.error("graph:7687 refuses connections")
        self.had.append(message.data["n"])  # type: ignore[arg-type]


@pytest.fixture
def graph() -> Graph:
    return Graph()


@pytest.fixture
def name(bus: Bus, graph: Graph) -> str:
    return bus.declare(graph.handle, pause_on=(GraphAway,))


@pytest.fixture
def feed(database: Engine, bus: Bus, name: str) -> Iterator[Callable[[], int]]:
    """Feeds, and runs what that put on the queue as a worker would."""
    with closing(make_wire()) as wire:
        feeder = Feeder(database, wire, 1_000, lost_after=60)

        def sweep() -> int:
            fed = feeder.sweep()
            pause.forget()
            bus.run_queued(name)
            return fed

        yield sweep


def row(engine: Engine) -> SubscriptionRow:
    with Session(engine, expire_on_commit=False) as session:
        return session.scalars(select(SubscriptionRow)).one()


def let_time_pass(engine: Engine) -> None:
    """The time of the next probe has come."""
    with engine.begin() as connection:
        connection.execute(update(SubscriptionRow).values(paused_until=datetime.now(UTC)))
    pause.forget()


def test_an_outage_pauses_the_subscription_and_uses_up_no_attempt(
    bus: Bus, database: Engine, name: str
) -> None:
    raw = bus.record(n=1)
    assert bus.run(name, raw) == "SUCCESS"
    delivery, subscription = bus.row(name, raw), row(database)
    assert (delivery.state, delivery.attempts, delivery.error) == ("held", 0, None)
    assert subscription.paused_until > datetime.now(UTC) - timedelta(seconds=2)
    assert subscription.paused_because == "GraphAway: graph:7687 refuses connections"


def test_while_it_is_paused_the_handler_is_left_alone(bus: Bus, graph: Graph, name: str) -> None:
    first, second = bus.record(n=1), bus.record(n=2)
    bus.run(name, first)
    bus.run(name, second)
    bus.run(name, first)
    assert graph.calls == 1
    assert [bus.state(name, raw) for raw in (first, second)] == ["held", "held"]


def test_a_retry_that_meets_the_outage_keeps_its_attempts(
    bus: Bus, graph: Graph, name: str, database: Engine, feed: Callable[[], int]
) -> None:
    raw = bus.record(n=1)
    graph.error = ValueError
    bus.run(name, raw, retries=3)
    graph.error = GraphAway
    bus.run(name, raw, retries=4)
    assert (bus.row(name, raw).state, bus.row(name, raw).attempts) == ("held", 4)


def test_one_event_probes_when_its_time_has_come_and_no_other(
    bus: Bus,
    graph: Graph,
    name: str,
    database: Engine,
    feed: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It comes only when the test says so, however slow the machine is.
    monkeypatch.setattr(pauses, "FIRST_PROBE", 60)
    raws = [bus.record(n=n) for n in range(5)]
    for raw in raws:
        bus.run(name, raw)
    assert feed() == 0, "its time has not come"
    let_time_pass(database)
    assert feed() == 1
    assert graph.calls == 2
    assert feed() == 0
    assert row(database).probes == 2, "the next probe waits twice as long"


def test_when_a_probe_gets_through_all_follow_in_order(
    bus: Bus, graph: Graph, name: str, database: Engine, feed: Callable[[], int]
) -> None:
    raws = [bus.record(n=n) for n in range(5)]
    for raw in reversed(raws):
        bus.run(name, raw)
    graph.up = True
    let_time_pass(database)
    assert feed() == 1
    after = row(database)
    assert (after.paused_until, after.paused_because, after.probes) == (None, None, 0)
    assert feed() == 4
    assert graph.had == [0, 1, 2, 3, 4]
    feed()
    assert not row(database).holding


def test_a_probe_that_fails_otherwise_ends_the_pause_too(
    bus: Bus, graph: Graph, name: str, database: Engine, feed: Callable[[], int]
) -> None:
    raw = bus.record(n=1)
    bus.run(name, raw)
    graph.error = ValueError
    let_time_pass(database)
    feed()
    assert row(database).paused_until is None
    assert bus.row(name, raw).attempts == 1


def test_a_probe_of_which_nothing_is_heard_is_followed_by_another(
    bus: Bus, name: str, database: Engine
) -> None:
    bus.run(name, bus.record(n=1))
    let_time_pass(database)
    with database.begin() as connection:
        assert pauses.begin_probe(connection, name, timedelta(seconds=0))
    with database.begin() as connection:
        assert pauses.begin_probe(connection, name, timedelta(seconds=60))
    with database.begin() as connection:
        assert not pauses.begin_probe(connection, name, timedelta(seconds=60))


def test_the_wait_doubles_with_each_failed_probe_up_to_five_minutes(
    bus: Bus, name: str, database: Engine
) -> None:
    waits = []
    for _ in range(12):
        with database.begin() as connection:
            assert pauses.pause(connection, name, "away")
            until, now = connection.execute(
                select(SubscriptionRow.paused_until, select(pauses.func.now()).scalar_subquery())
            ).one()
        waits.append((until - now).total_seconds())
        let_time_pass(database)
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == waits[-2] == 300


def test_of_many_that_fail_at_once_one_makes_the_pause(
    bus: Bus, name: str, database: Engine
) -> None:
    with database.begin() as connection:
        assert [pauses.pause(connection, name, "away") for _ in range(5)] == [True] + 4 * [False]
    assert row(database).probes == 1


def test_what_a_person_paused_is_not_resumed_by_an_event(
    bus: Bus, graph: Graph, name: str, database: Engine, feed: Callable[[], int]
) -> None:
    graph.up = True
    with database.begin() as connection:
        connection.execute(
            update(SubscriptionRow).values(paused_until=datetime(9999, 12, 31, tzinfo=UTC))
        )
    bus.run(name, bus.record(n=1))
    assert feed() == 0
    assert graph.calls == 0
    assert row(database).paused_until.year == 9999


def test_a_probe_runs_where_the_pause_was_seen_a_moment_ago(
    bus: Bus,
    graph: Graph,
    name: str,
    database: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pause, "LOOK_EVERY", 3600.0)
    first, second = bus.record(n=1), bus.record(n=2)
    bus.run(name, first)
    pause.forget()
    bus.run(name, second)
    assert bus.state(name, second) == "held"
    graph.up = True
    with database.begin() as connection:
        connection.execute(update(SubscriptionRow).values(paused_until=datetime.now(UTC)))
        connection.execute(update(DeliveryRow).values(state="retrying"))
    bus.run(name, first)
    assert (bus.state(name, first), row(database).paused_until) == ("delivered", None)


def test_a_pause_that_cannot_be_ended_now_ends_later(
    bus: Bus, graph: Graph, name: str, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_connection(*_: object) -> bool:
        raise PoolTimeout("QueuePool limit reached")

    raw = bus.record(n=1)
    bus.run(name, raw)
    let_time_pass(database)
    graph.up = True
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(pauses, "resume", no_connection)
        with database.begin() as connection:
            connection.execute(update(DeliveryRow).values(state="retrying"))
        assert bus.run(name, raw) == "SUCCESS"
    assert bus.state(name, raw) == "delivered"
    assert row(database).paused_until is not None


def test_a_batch_that_meets_the_outage_is_held_whole(bus: Bus) -> None:
    calls: list[int] = []

    def handler(messages: list[Envelope]) -> None:
        calls.append(len(messages))
        raise GraphAway

    name = bus.declare(handler, batch_size=10, pause_on=GraphAway)
    raws = [bus.record(n=n) for n in range(3)]
    assert bus.run(name, *raws) == "SUCCESS"
    assert calls == [3]
    assert [bus.state(name, raw) for raw in raws] == ["held"] * 3


def test_what_a_session_wrote_before_the_outage_is_rolled_back(bus: Bus, database: Engine) -> None:
    def handler(message: Envelope, session: Session) -> None:
        session.execute(update(SubscriptionRow).values(paused_because="written by the handler"))
        raise GraphAway

    name = bus.declare(handler, pause_on=(GraphAway,))
    raw = bus.record(n=1)
    bus.run(name, raw)
    assert bus.state(name, raw) == "held"
    assert row(database).paused_because == "GraphAway: "


@pytest.mark.parametrize("pause_on", ["GraphAway", (1,), ("x",)])
def test_what_is_no_error_cannot_be_paused_on(pause_on: Any, unique: Callable[[str], str]) -> None:
    with pytest.raises(SubscriptionError, match="pause_on must be a tuple of exception classes"):
        subscriber(unique("sub"), pause_on=pause_on)(lambda message: None)


def test_a_probe_for_which_nothing_waited_keeps_no_later_event_from_probing(
    bus: Bus, graph: Graph, name: str, database: Engine, feed: Callable[[], int]
) -> None:
    with database.begin() as connection:
        pauses.pause(connection, name, "away")
    let_time_pass(database)
    assert feed() == 0
    raw = bus.record(n=1)
    with database.begin() as connection:
        deliveries.hold(connection, name, [Envelope.decode(raw).base_log_id])
    graph.up = True
    assert feed() == 1
    assert (bus.state(name, raw), row(database).paused_until) == ("delivered", None)


def test_a_probe_that_gets_through_ends_no_pause_by_hand(
    bus: Bus, name: str, database: Engine
) -> None:
    with database.begin() as connection:
        pauses.pause_by_hand(connection, name, "maintenance")
        assert not pauses.resume(connection, name)
    assert row(database).paused_because == "maintenance"


def test_an_old_copy_that_meets_a_pause_does_not_bring_its_retry_forward(
    bus: Bus, graph: Graph
) -> None:
    name = bus.declare(
        graph.handle, pause_on=(GraphAway,), retry_backoff=False, default_retry_delay=3600
    )
    raw = bus.record(n=1)
    graph.error = ValueError
    bus.run(name, raw)
    due = bus.row(name, raw).next_attempt_at
    graph.error = GraphAway
    bus.run(name, bus.record(n=2))
    bus.run(name, raw)
    assert (bus.state(name, raw), bus.row(name, raw).next_attempt_at) == ("held", due)


def test_an_outage_of_weeks_is_paused_as_ever(bus: Bus, name: str, database: Engine) -> None:
    """Two to the power of all its probes would be no number any more."""
    with database.begin() as connection:
        connection.execute(update(SubscriptionRow).values(probes=30))
        assert pauses.pause(connection, name, "away")
    assert row(database).probes == 30
