"""A queue never grows past its depth: more copies wait in PostgreSQL and follow, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from uuid import uuid4

import pytest
from kombu import Queue
from locks import waits_for_a_lock
from sqlalchemy import Engine, func, insert, select
from sqlalchemy.orm import Session

from cos_events import broker, record_event
from cos_events.broadcast import Broadcaster, BrokerWire, make_broadcaster, make_wire
from cos_events.broadcast.message import body_of
from cos_events.envelope import Envelope
from cos_events.errors import BroadcastError
from cos_events.feeder import Feeder
from cos_events.publisher import Publisher
from cos_events.queue_room import QueueRoom
from cos_events.redelivery import Redelivery
from cos_events.store import deliveries, held, locks, subscriptions
from cos_events.store.lag import lags
from cos_events.store.ledger import verify
from cos_events.store.models import AT_ONCE, DeliveryRow, OutboxRow, SubscriptionRow
from cos_events.subscription import Subscription

DEPTH = 20
MARGIN = 5


# Rows wait until a test publishes them.
pytestmark = pytest.mark.usefixtures("woken")


@pytest.fixture
def name(
    broker_url: str, database: Engine, clean_queues: list[str], unique: Callable[[str], str]
) -> str:
    """A subscription that nobody consumes."""
    made = unique("sub")
    clean_queues.append(made)
    with database.begin() as connection:
        subscriptions.register(connection, [Subscription(made)])
    return made


@pytest.fixture
def publish(database: Engine, name: str) -> Iterator[Callable[[], int]]:
    """Publishes a batch of up to five, for queues of up to twenty."""
    with closing(make_broadcaster()) as broadcaster:
        room = QueueRoom(DEPTH, MARGIN, by_module=broker.on_rabbitmq())
        publisher = Publisher(database, broadcaster, room)
        yield lambda: publisher.publish(limit=MARGIN)


@pytest.fixture
def feeder(database: Engine, name: str) -> Iterator[Feeder]:
    with closing(make_wire()) as wire:
        yield Feeder(database, wire, DEPTH, lost_after=60)


def record(engine: Engine, count: int, module: str = "cc") -> None:
    with Session(engine) as session, session.begin():
        for number in range(count):
            record_event(session, "event_log", {"n": number}, module=module)


def publish_all(publish: Callable[[], int]) -> None:
    while publish():
        pass


def depth(name: str) -> int:
    depths = broker.queue_depths([name])
    assert depths is not None
    return depths.get(name, 0)


def states(engine: Engine) -> dict[str, int]:
    query = select(DeliveryRow.state, func.count()).group_by(DeliveryRow.state)
    with engine.connect() as connection:
        return {state: count for state, count in connection.execute(query)}  # noqa: C416


def is_holding(engine: Engine) -> bool:
    with engine.connect() as connection:
        return connection.scalars(select(SubscriptionRow.holding)).one()


def numbers(taken: list[str]) -> list[int]:
    return [int(raw.partition('"n":')[2].partition("}")[0]) for raw in taken]


@pytest.fixture
def take(name: str, database: Engine) -> Callable[[], list[int]]:
    """Takes all that is on the queue and has it delivered; returns the events' numbers."""

    def take_all() -> list[int]:
        raws = []
        with broker.connect() as connection, connection.channel() as channel:
            queue = Queue(name, channel=channel)
            while message := queue.get(no_ack=True):
                raws.append(body_of(message).decode())
        ids = [Envelope.decode(raw).base_log_id for raw in raws]
        with database.begin() as connection:
            deliveries.settle(connection, name, ids, 1)
        return numbers(raws)

    return take_all


def test_a_full_queue_stays_at_its_depth_and_the_rest_waits_in_postgresql(
    database: Engine, name: str, publish: Callable[[], int]
) -> None:
    record(database, 100)
    publish_all(publish)
    assert 0 < depth(name) <= DEPTH
    assert states(database) == {"held": 100 - depth(name)}
    assert is_holding(database)


def test_a_queue_that_gets_what_its_subscription_does_not_want_stays_at_its_depth_too(
    database: Engine, name: str, publish: Callable[[], int]
) -> None:
    with database.begin() as connection:
        subscriptions.register(connection, [Subscription(name, event_types=frozenset({"rare"}))])
    record(database, 100)
    publish_all(publish)
    assert depth(name) <= DEPTH
    assert states(database) == {}


def test_what_is_held_follows_in_order_as_the_queue_drains_and_then_all_is_as_before(
    database: Engine,
    name: str,
    publish: Callable[[], int],
    feeder: Feeder,
    take: Callable[[], list[int]],
) -> None:
    record(database, 100)
    publish_all(publish)
    order = []
    while is_holding(database):
        feeder.sweep()
        assert depth(name) <= DEPTH
        order += take()
    assert order == list(range(100))
    record(database, 3)
    publish_all(publish)
    assert states(database) == {"delivered": 100}
    assert take() == [0, 1, 2]


def test_a_new_module_reaches_a_queue_that_held_meanwhile(
    database: Engine,
    name: str,
    publish: Callable[[], int],
    feeder: Feeder,
    take: Callable[[], list[int]],
) -> None:
    record(database, 100)
    publish_all(publish)
    record(database, 2, module="pem")
    publish_all(publish)
    while is_holding(database):
        take()
        feeder.sweep()
    record(database, 4, module="pem")
    publish_all(publish)
    take()
    assert states(database) == {"delivered": 106}


def test_another_publisher_that_knew_the_queue_unbound_binds_it_again(
    database: Engine,
    name: str,
    publish: Callable[[], int],
    feeder: Feeder,
    take: Callable[[], list[int]],
) -> None:
    with closing(make_broadcaster()) as broadcaster:
        other = Publisher(database, broadcaster, QueueRoom(DEPTH, MARGIN))
        record(database, 1)
        assert other.publish() == 1
        record(database, 100)
        publish_all(publish)
        record(database, 1)
        assert other.publish() == 1
        while is_holding(database):
            take()
            feeder.sweep()
        take()
        record(database, 2)
        assert other.publish() == 2
        assert take() == [0, 1]
    assert states(database) == {"delivered": 104}


def test_a_full_queue_holds_up_no_other_subscription(
    database: Engine,
    name: str,
    publish: Callable[[], int],
    unique: Callable[[str], str],
    clean_queues: list[str],
) -> None:
    record(database, 50)
    publish_all(publish)
    other = unique("other")
    clean_queues.append(other)
    with database.begin() as connection:
        subscriptions.register(connection, [Subscription(other)])
    record(database, 5)
    publish_all(publish)
    assert depth(other) == 5
    assert depth(name) <= DEPTH


def test_held_events_are_in_the_books_and_not_missing(
    database: Engine, name: str, publish: Callable[[], int], feeder: Feeder
) -> None:
    record(database, 100)
    publish_all(publish)
    with database.connect() as connection:
        (account,) = verify(connection, grace=0)
    assert account.committed == 100
    assert account.missing == depth(name), "with no grace, what is on the broker counts as missing"


def test_the_relay_sends_nothing_again_that_is_held(
    database: Engine, name: str, publish: Callable[[], int]
) -> None:
    record(database, 100)
    publish_all(publish)
    before = depth(name)
    with closing(make_wire()) as wire:
        relay = Redelivery(database, wire, lost_after=0.001)
        for _ in range(3):
            relay.sweep()
    assert depth(name) == before


class _Refusing:
    def open(self) -> None:
        pass

    def send_to_queue(self, *_: object) -> None:
        raise BroadcastError("away")

    broadcast = send_to_queue


def test_what_the_broker_does_not_take_is_held_as_before(
    database: Engine, name: str, publish: Callable[[], int], take: Callable[[], list[int]]
) -> None:
    record(database, 100)
    publish_all(publish)
    take()
    before = states(database)
    refusing: BrokerWire = _Refusing()  # type: ignore[assignment]
    with pytest.raises(BroadcastError):
        Feeder(database, refusing, DEPTH, lost_after=60).sweep()
    assert states(database) == before


def test_a_batch_that_failed_counts_as_sent_where_depths_are_watched(
    database: Engine, name: str
) -> None:
    record(database, 5)
    room = QueueRoom(DEPTH, MARGIN, by_module=broker.on_rabbitmq())
    refusing: Broadcaster = _Refusing()  # type: ignore[assignment]
    with pytest.raises(BroadcastError):
        Publisher(database, refusing, room).publish()
    assert room.unknown() == [name]


def test_two_feeders_hand_nothing_over_twice_and_do_not_overfill_the_queue(
    database: Engine,
    name: str,
    publish: Callable[[], int],
    feeder: Feeder,
    take: Callable[[], list[int]],
) -> None:
    record(database, 60)
    publish_all(publish)
    take()
    with database.begin() as connection:
        locks.subscription(connection, name)
        assert feeder.sweep() == 0, "another one feeds it"
    assert feeder.sweep() == DEPTH
    assert feeder.sweep() == 0
    assert depth(name) == DEPTH


def test_an_old_copy_of_a_held_event_runs_nothing(
    database: Engine, name: str, publish: Callable[[], int]
) -> None:
    record(database, 30)
    publish_all(publish)
    ours = select(OutboxRow.event_id).join(DeliveryRow, DeliveryRow.event_id == OutboxRow.event_id)
    with database.begin() as connection:
        event_id = connection.scalars(ours.where(DeliveryRow.state == "held").limit(1)).one()
        assert deliveries.due(connection, name, [event_id], 1) == {event_id: (False, None)}
        assert not deliveries.settle(connection, name, [event_id], 1)


def test_rows_without_an_event_keep_nothing_waiting(
    database: Engine,
    name: str,
    publish: Callable[[], int],
    feeder: Feeder,
    take: Callable[[], list[int]],
) -> None:
    """As an older version left them; they come first, and are more than one batch."""
    with database.begin() as connection:
        held.start_holding(connection, name)
    record(database, 2)
    publish_all(publish)
    with Session(database) as session, session.begin():
        session.add_all(
            DeliveryRow(
                subscription=name,
                event_id=uuid4(),
                outbox_id=0,
                state="held",
                attempts=0,
                next_attempt_at=AT_ONCE,
            )
            for _ in range(DEPTH)
        )
    assert feeder.sweep() == 2
    assert take() == [0, 1]
    assert not is_holding(database)


@pytest.mark.parametrize("begins", [True, False], ids=["begins", "ends"])
def test_who_holds_is_not_changed_while_a_batch_is_being_published(
    database: Engine, name: str, eventually: Callable[..., None], begins: bool
) -> None:
    def decide() -> None:
        with database.begin() as connection:
            (held.start_holding if begins else held.stop_holding)(connection, name)

    if not begins:
        with database.begin() as connection:
            held.start_holding(connection, name)
    with ThreadPoolExecutor(1) as pool:
        with database.begin() as publishing:
            publishing.execute(select(locks.share_holding()))
            decided = pool.submit(decide)
            eventually(lambda: decided.done() or waits_for_a_lock(database))
            assert is_holding(database) is not begins
        decided.result()
    assert is_holding(database) is begins


def test_a_row_whose_event_is_gone_hides_no_other_that_waits(database: Engine, name: str) -> None:
    with database.begin() as connection:
        lost = {"subscription": name, "state": "held", "attempts": 0}
        connection.execute(insert(DeliveryRow).values(event_id=uuid4(), outbox_id=0, **lost))
        (lag,) = (each for each in lags(connection) if each.subscription == name)
    assert lag.states == {"held": 1}
