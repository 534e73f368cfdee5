"""Nobody who has a lock, or a row that others wait for, waits for a handler for long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
from click.testing import CliRunner
from locks import waits_for_a_lock
from retries import failed
from sqlalchemy import Engine, func, select, true, update
from sqlalchemy.orm import Session

from cos_events import replay
from cos_events.broadcast import BrokerWire, Copy, make_broadcaster, make_wire
from cos_events.cli import main
from cos_events.envelope import Envelope
from cos_events.errors import BroadcastError
from cos_events.feeder import Feeder
from cos_events.publisher import Publisher
from cos_events.redelivery import Redelivery
from cos_events.selection import EVERYTHING
from cos_events.store import deliveries, held, locks, subscriptions
from cos_events.store.engine import wait_at_most
from cos_events.store.models import OutboxRow, SubscriptionRow
from cos_events.subscription import Subscription

PATIENCE = 30.0


@pytest.fixture
def publisher(database: Engine, bus: Any) -> Iterator[Publisher]:
    with closing(make_broadcaster()) as broadcaster:
        yield Publisher(database, broadcaster)


@contextmanager
def handling(database: Engine, name: str, raw: str, attempts: int = 1) -> Iterator[None]:
    """A handler's transaction has this event's row while the body runs, and then fails."""
    with Session(database) as session:
        deliveries.settle(session, name, [Envelope.decode(raw).base_log_id], attempts)
        yield
        session.rollback()


def test_a_worker_that_makes_two_known_waits_for_a_lock_without_any_of_their_rows(
    database: Engine, woken: list[list[int]], eventually: Callable[..., None]
) -> None:
    both = [Subscription("first"), Subscription("second")]

    def register() -> None:
        with database.begin() as connection:
            subscriptions.register(connection, both)

    register()
    with ThreadPoolExecutor(1) as pool:
        with database.begin() as feeding:
            locks.subscription(feeding, "second")
            registered = pool.submit(register)
            eventually(lambda: waits_for_a_lock(database))
            with database.begin() as deciding:
                wait_at_most(deciding, 5_000)
                held.start_holding(deciding, "first")
        registered.result(PATIENCE)


@pytest.mark.parametrize("wait", [True, False])
def test_a_lock_of_a_process_that_has_stopped_is_let_go(
    database: Engine, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    at_once = func.set_config("idle_in_transaction_session_timeout", "50ms", true())
    monkeypatch.setattr(locks, "LET_GO", at_once)
    with database.connect() as stopped:
        assert locks.subscription(stopped, "mailer", wait=wait)
        monkeypatch.undo()
        with database.connect() as other:
            eventually(lambda: locks.subscription(other, "mailer", wait=False))
        stopped.invalidate()


def test_a_publisher_holds_past_an_event_whose_handler_runs(
    bus: Any,
    database: Engine,
    publisher: Publisher,
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = bus.declare(lambda message: None)
    first, second = bus.record(n=1), bus.record(n=2)
    with monkeypatch.context() as patch:
        # It dies between the broker and its commit.
        patch.setattr(publisher._broadcaster._channel, "send", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publisher.publish()
    with database.begin() as connection:
        held.start_holding(connection, name)
    with handling(database, name, first):
        assert publisher.publish() == 2
        assert bus.state(name, second) == "held"
    assert bus.state(name, first) is None
    bus.queued(name)
    with closing(make_wire()) as wire:
        relay = Redelivery(database, wire, 0.1)
        eventually(lambda: relay.sweep() and bus.row(name, first))
    assert bus.state(name, first) == "retrying"


def test_the_relay_brings_history_only_past_events_whose_handlers_have_ended(
    bus: Any, database: Engine, publisher: Publisher
) -> None:
    raw = bus.record(n=1)
    publisher.publish()
    name = bus.declare(lambda message: None, start_from="beginning")
    with closing(make_wire()) as wire:
        relay = Redelivery(database, wire, 60.0)
        relay.sweep()
        with handling(database, name, raw):
            relay.sweep()
            assert watermark(database, name) == 0
        relay.sweep()
        assert watermark(database, name) > 0
        assert bus.state(name, raw) == "held"
        bus.queued(name)
        assert Feeder(database, wire, 10_000, lost_after=60).sweep() == 1
    assert bus.run_queued(name) == 1
    assert bus.state(name, raw) == "delivered"


class _TakingSilently:
    """A broker that takes copies, and whose answer gets lost: a handler runs at once."""

    def __init__(self, database: Engine, handlers: ExitStack) -> None:
        self._database, self._handlers = database, handlers

    def send_to_queue(self, name: str, copies: Sequence[Copy]) -> None:
        self._handlers.enter_context(handling(self._database, name, copies[0].envelope))
        raise BroadcastError("no answer")


def test_the_feeder_takes_nothing_back_that_a_handler_has(bus: Any, database: Engine) -> None:
    name = bus.declare(lambda message: None)
    first, second = bus.record(n=1), bus.record(n=2)
    with database.begin() as connection:
        held.hold(connection, [name], true())
    with ExitStack() as handlers, ThreadPoolExecutor(1) as pool:
        wire: BrokerWire = _TakingSilently(database, handlers)  # type: ignore[assignment]
        sweep = pool.submit(Feeder(database, wire, 10_000, lost_after=60).sweep)
        try:
            with pytest.raises(BroadcastError):
                sweep.result(PATIENCE)
        finally:
            handlers.close()
    assert (bus.state(name, first), bus.state(name, second)) == ("retrying", "held")


def test_the_feeder_takes_nothing_back_that_was_delivered_meanwhile(
    bus: Any, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = bus.declare(lambda message: None)
    first, second = bus.record(n=1), bus.record(n=2)

    def take_silently(_name: str, copies: Sequence[Copy]) -> None:
        assert bus.run(name, copies[0].envelope) == "SUCCESS"
        raise BroadcastError("no answer")

    with database.begin() as connection:
        held.hold(connection, [name], true())
    with closing(make_wire()) as wire, monkeypatch.context() as patch:
        patch.setattr(wire, "send_to_queue", take_silently)
        with pytest.raises(BroadcastError):
            Feeder(database, wire, 10_000, lost_after=60).sweep()
    assert (bus.state(name, first), bus.state(name, second)) == ("delivered", "held")


def test_a_second_copy_of_an_event_that_runs_keeps_no_other_key_waiting(
    bus: Any, database: Engine, publisher: Publisher
) -> None:
    runs, ends = threading.Event(), threading.Event()

    def handle(message: Envelope, session: Session) -> None:
        if message.data["key"] == "slow":
            runs.set()
            assert ends.wait(PATIENCE)

    name = bus.declare(handle, order_by="data.key")
    slow, other = bus.record(key="slow"), bus.record(key="other")
    publisher.publish()
    bus.queued(name)
    with ThreadPoolExecutor(2) as pool:
        try:
            first: Future[str] = pool.submit(bus.run, name, slow)
            assert runs.wait(PATIENCE)
            again = pool.submit(bus.run, name, slow)
            assert bus.run(name, other) == "SUCCESS"
            assert bus.state(name, other) == "delivered"
            assert again.result(PATIENCE) == "RETRY"
        finally:
            ends.set()
        assert first.result(PATIENCE) == "SUCCESS"
    assert bus.row(name, slow).attempts == 1


def test_a_retry_that_older_code_began_and_nobody_wants_any_more_is_dropped(
    bus: Any, database: Engine, publisher: Publisher, eventually: Callable[..., None]
) -> None:
    """As in a rolling deployment: the new worker is there, the old one has the event in hand."""

    def fail(message: Envelope) -> None:
        raise OSError("away")

    name = bus.declare(fail, retry_backoff=False, default_retry_delay=0)
    raw = bus.record()
    publisher.publish()
    narrower = Subscription(name, None, frozenset({"another_type"}))
    with database.begin() as connection:
        subscriptions.register(connection, [narrower])
    bus.run_queued(name)
    assert bus.state(name, raw) == "retrying"
    bus.queued(name)
    with closing(make_wire()) as wire:
        relay = Redelivery(database, wire, 0.1)
        eventually(lambda: relay.sweep() == 0 and bus.row(name, raw) is None)
    assert bus.queued(name) == []


def failed_long_ago(database: Engine, name: str, *raws: str) -> None:
    for raw in raws:
        failed(database, name, Envelope.decode(raw).base_log_id, wait=-3_600)


def test_the_relay_sends_late_retries_past_one_whose_handler_runs(
    bus: Any, database: Engine
) -> None:
    name = bus.declare(lambda message: None)
    runs, lost = bus.record(n=1), bus.record(n=2)
    failed_long_ago(database, name, runs, lost)
    with ExitStack() as handlers, closing(make_wire()) as wire, ThreadPoolExecutor(1) as pool:
        handlers.enter_context(handling(database, name, runs, attempts=2))
        sweep = pool.submit(Redelivery(database, wire, 60.0).sweep)
        try:
            assert sweep.result(PATIENCE) == 1
        finally:
            handlers.close()
    assert [message.payload[0] for message in bus.queued(name)] == [[[lost]]]


def test_a_worker_with_narrower_filters_starts_past_a_handler_that_runs(
    bus: Any, database: Engine
) -> None:
    name = bus.declare(lambda message: None)
    runs, waits = bus.record(n=1), bus.record(n=2)
    failed_long_ago(database, name, runs, waits)
    narrower = Subscription(name, None, frozenset({"another_type"}))

    def register() -> None:
        with database.begin() as connection:
            subscriptions.register(connection, [narrower])

    with ExitStack() as handlers, ThreadPoolExecutor(1) as pool:
        handlers.enter_context(handling(database, name, runs, attempts=2))
        registered = pool.submit(register)
        try:
            registered.result(PATIENCE)
        finally:
            handlers.close()
    assert (bus.state(name, runs), bus.state(name, waits)) == ("retrying", None)


@pytest.mark.parametrize("redelivered", [False, True], ids=["it fails", "its worker died"])
def test_what_is_noted_of_a_copy_waits_for_no_other_copy_whose_handler_runs(
    bus: Any, database: Engine, monkeypatch: pytest.MonkeyPatch, redelivered: bool
) -> None:
    def fail(message: Envelope) -> None:
        raise OSError("away")

    monkeypatch.setattr(locks, "COPY_TIMEOUT_MS", 50)
    monkeypatch.setattr("cos_events.failure.LEDGER_AWAY_DELAY", 0)
    monkeypatch.setattr("cos_events.delivery._is_redelivered", lambda _: redelivered)
    name, raw = bus.declare(fail), bus.record()
    with ExitStack() as handlers, ThreadPoolExecutor(1) as pool:
        handlers.enter_context(handling(database, name, raw))
        run = pool.submit(bus.run, name, raw)
        try:
            assert run.result(PATIENCE) == "RETRY"
        finally:
            handlers.close()
    assert bus.row(name, raw) is None


@pytest.fixture
def history(bus: Any, database: Engine) -> tuple[str, list[str]]:
    """A subscription, and the five events that it has not had yet."""
    name = bus.declare(lambda message: None)
    raws = [bus.record(n=n) for n in range(5)]
    with database.begin() as connection:
        connection.execute(update(OutboxRow).values(published_at=func.now()))
    return name, raws


def test_a_replay_leaves_out_what_a_handler_has_and_says_so(
    bus: Any,
    database: Engine,
    history: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, (first, *others, last) = history
    monkeypatch.setattr(replay, "PATIENCE", 0.2)
    with ThreadPoolExecutor(1) as pool, handling(database, name, last):
        run = pool.submit(CliRunner().invoke, main, ["replay", name])
        said = run.result(PATIENCE)
        assert said.stdout == f"4 events run again as the queue has room for {name}\n"
        assert said.stderr == "1 are being handled right now and were left out\n"
        assert {bus.state(name, each) for each in (first, *others)} == {"held"}
    assert bus.state(name, last) is None


def test_what_a_replay_holds_waits_for_no_handler_that_has_another_event(
    bus: Any,
    database: Engine,
    history: tuple[str, list[str]],
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, (first, taken, *others) = history
    monkeypatch.setattr(replay, "PATIENCE", PATIENCE)
    with ThreadPoolExecutor(1) as pool:
        with handling(database, name, taken):
            run = pool.submit(replay.run_again, name, EVERYTHING)
            rest = first, *others
            eventually(lambda: {bus.state(name, each) for each in rest} == {"held"}, PATIENCE)
            assert not run.done()
        assert run.result(PATIENCE) == (5, 0), "it is tried again"
    assert bus.state(name, taken) == "held"


def watermark(database: Engine, name: str) -> int:
    with database.connect() as connection:
        settled = select(SubscriptionRow.settled_through - SubscriptionRow.starts_after)
        return connection.scalars(settled.where(SubscriptionRow.name == name)).one()
