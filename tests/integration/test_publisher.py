"""The publisher and the relay on a real database: claim, broadcast, mark."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from outbox import record, unpublished
from prometheus_client import REGISTRY
from redis import Redis
from redis.client import PubSub
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from cos_events import record_event
from cos_events.broadcast import Broadcaster
from cos_events.broadcast.channel import ChannelWire
from cos_events.embedded import Servers
from cos_events.errors import BroadcastError, BrokerAway
from cos_events.publisher import Publisher
from cos_events.store import outbox
from cos_events.store.locks import LET_GO_AFTER
from cos_events.store.outbox import Pending
from cos_events.subscription import Subscription
from cos_events.topology import channel_name

NOBODY_LISTENS = "redis://127.0.0.1:1/0"


class FakeWire:
    """A broker wire in memory; `hold` it to see what happens meanwhile."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.batches: list[list[int]] = []
        self.subscriptions: list[Subscription] = []
        self.reached = threading.Semaphore(0)
        self.released = threading.Event()
        self.released.set()

    @property
    def ids(self) -> list[int]:
        return [id_ for batch in self.batches for id_ in batch]

    def open(self) -> None:
        if isinstance(self.error, BrokerAway):
            raise BroadcastError("away") from self.error

    def send(self, batch: Sequence[Pending], subscriptions: Sequence[Subscription]) -> None:
        self.batches.append([pending.id for pending in batch])
        self.subscriptions = list(subscriptions)
        self.reached.release()
        assert self.released.wait(20)
        if self.error:
            raise self.error

    def close(self) -> None:
        pass


def channel_missed() -> float:
    return REGISTRY.get_sample_value("cos_events_channel_missed_total") or 0.0


@pytest.fixture
def channel(database: Engine) -> Iterator[ChannelWire]:
    wire = ChannelWire()
    yield wire
    wire.close()


@pytest.fixture
def make(database: Engine, channel: ChannelWire) -> Callable[[FakeWire], Publisher]:
    """Makes a publisher on the test's database and a wire."""
    return lambda wire: Publisher(database, Broadcaster(wire, channel))


# Rows wait until a test publishes them.
pytestmark = pytest.mark.usefixtures("woken")


def test_a_publisher_that_stops_in_the_middle_is_not_waited_for_for_ever(
    database: Engine,
) -> None:
    record(database, 1, "cc")
    timeout = "SHOW idle_in_transaction_session_timeout"
    with database.connect() as connection:
        with connection.begin():
            assert outbox.claim(connection, 10)
            assert connection.scalar(text(timeout)) == f"{LET_GO_AFTER // 60}min"
        assert connection.scalar(text(timeout)) == "0"


def listener(redis: Redis, module: str) -> PubSub:
    listening = redis.pubsub(ignore_subscribe_messages=True)
    listening.subscribe(channel_name(module))
    listening.get_message(timeout=5)  # the confirmation
    return listening


def heard(listening: PubSub, count: int) -> list[dict[str, Any]]:
    """So many messages, and no more of them waiting."""
    found = []
    while len(found) < count and (message := listening.get_message(timeout=5)):
        found.append(message)
    assert listening.get_message(timeout=0.05) is None
    return found


def test_only_committed_rows_are_published_and_only_once(
    database: Engine, make: Callable[[FakeWire], Publisher]
) -> None:
    ids, wire = record(database, 3), FakeWire()
    with Session(database) as session:
        record_event(session, "event_log", {"n": 3})
        session.flush()
        assert make(wire).publish() == 3
        session.rollback()
    assert wire.ids == ids
    assert unpublished(database) == 0
    assert make(wire).publish() == 0
    assert len(wire.batches) == 1, "an empty batch is not broadcast"


def test_a_batch_takes_the_oldest_rows_up_to_the_limit(
    database: Engine, make: Callable[[FakeWire], Publisher]
) -> None:
    ids, wire = record(database, 5), FakeWire()
    publishing = make(wire)
    assert [publishing.publish(limit=2) for _ in range(4)] == [2, 2, 1, 0]
    assert wire.batches == [ids[:2], ids[2:4], ids[4:]]


def test_only_the_rows_that_were_asked_for_are_published(
    database: Engine, make: Callable[[FakeWire], Publisher]
) -> None:
    ids, wire = record(database, 4), FakeWire()
    publishing = make(wire)
    assert publishing.publish([ids[1], ids[3], 10**9]) == 2
    assert publishing.publish([ids[1]]) == 0
    assert publishing.publish([]) == 0
    assert wire.batches == [[ids[1], ids[3]]]
    assert unpublished(database) == 2


def test_two_publishers_at_once_never_broadcast_one_row_twice(
    database: Engine, make: Callable[[FakeWire], Publisher]
) -> None:
    ids, wire = record(database, 40), FakeWire()
    wire.released.clear()
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(make(wire).publish, None, 20) for _ in range(2)]
        for _ in running:
            assert wire.reached.acquire(timeout=20)
        assert make(wire).publish() == 0, "a third finds nothing that is not held"
        wire.released.set()
        assert [each.result(20) for each in running] == [20, 20]
    assert sorted(wire.ids) == ids
    assert unpublished(database) == 0


def test_a_broker_that_is_away_leaves_the_rows_as_they_were(
    database: Engine, make: Callable[[FakeWire], Publisher]
) -> None:
    ids = record(database, 3)
    with pytest.raises(BroadcastError):
        make(FakeWire(BroadcastError("away"))).publish()
    with database.connect() as connection:
        assert [pending.id for pending in outbox.claim(connection, 10)] == ids, "not locked"
    again = FakeWire()
    assert make(again).publish() == 3
    assert again.ids == ids


def test_while_the_broker_cannot_be_reached_nothing_is_written(
    database: Engine, make: Callable[[FakeWire], Publisher]
) -> None:
    record(database, 3)
    versions = text(
        "SELECT array_agg(xmin::text || ctid::text || xmax::text) FROM cos_events.outbox"
    )
    with database.connect() as connection:
        before = connection.scalar(versions)
    with pytest.raises(BroadcastError):
        make(FakeWire(BrokerAway("redis://nowhere", "refused"))).publish()
    with database.connect() as connection:
        assert connection.scalar(versions) == before


def test_after_a_refusal_one_row_asks_whether_the_broker_takes_messages_again(
    database: Engine, make: Callable[[FakeWire], Publisher]
) -> None:
    ids, wire = record(database, 5), FakeWire(BroadcastError("full"))
    publishing = make(wire)
    for _ in range(2):
        with pytest.raises(BroadcastError):
            publishing.publish()
    assert wire.batches == [ids, ids[:1]]
    wire.batches, wire.error = [], None
    assert publishing.publish() == 5
    assert wire.batches == [ids[:1], ids[1:]]
    ids = record(database, 2)
    assert publishing.publish() == 2
    assert wire.batches[2:] == [ids]


def test_a_channel_that_is_away_misses_events_and_nothing_else_does(
    database: Engine, environment: Callable[..., None]
) -> None:
    environment(REDIS_URL=NOBODY_LISTENS)
    before, ids, wire = channel_missed(), record(database, 3), FakeWire()
    publishing = Publisher(database, Broadcaster(wire, ChannelWire()))
    assert publishing.publish(limit=2) == 2
    assert publishing.publish() == 1
    assert wire.ids == ids
    assert unpublished(database) == 0
    assert channel_missed() - before == 3


def test_a_channel_that_fails_in_whatever_way_stops_no_event(
    database: Engine, make: Callable[..., Publisher], monkeypatch: Any
) -> None:
    before = channel_missed()
    record(database, 3)
    monkeypatch.setattr("redis.client.Pipeline.execute", lambda *_, **__: 1 / 0)
    assert make(FakeWire()).publish() == 3
    assert (unpublished(database), channel_missed() - before) == (0, 3)


def test_the_channel_hears_nothing_of_what_the_broker_did_not_take(
    servers: Servers, database: Engine, unique: Callable[[str], str], make: Callable[..., Publisher]
) -> None:
    module = unique("mod")
    record(database, 2, module)
    with Redis.from_url(servers.redis_url) as redis, listener(redis, module) as listening:
        with pytest.raises(BroadcastError):
            make(FakeWire(BroadcastError("away"))).publish()
        assert heard(listening, 0) == []
        make(FakeWire()).publish()
        assert len(heard(listening, 2)) == 2


def test_a_redis_subscriber_sees_exactly_the_seven_fields_with_the_right_types(
    servers: Servers, database: Engine, make: Callable[[FakeWire], Publisher]
) -> None:
    with Session(database) as session:
        first = record_event(session, "event_log", {"a": [1, None, "é"]}, request_id="r1")
        record_event(session, "event_log", {})
        session.commit()
    with Redis.from_url(servers.redis_url) as redis, listener(redis, "cc") as listening:
        make(FakeWire()).publish()
        messages = heard(listening, 2)
    assert {message["channel"] for message in messages} == {b"mem0.recorded.cc"}
    envelope, other = (json.loads(message["data"]) for message in messages)
    assert {name: type(value) for name, value in envelope.items()} == {
        "base_log_id": str,
        "source_module": str,
        "timestamp": str,
        "trace_id": str,
        "request_id": str,
        "event_type": str,
        "data": dict,
    }
    assert UUID(envelope["base_log_id"]) == first
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", envelope["timestamp"])
    moment = datetime.fromisoformat(envelope["timestamp"])
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)
    assert (envelope["source_module"], envelope["event_type"]) == ("cc", "event_log")
    assert (envelope["request_id"], other["request_id"]) == ("r1", "")
    assert (envelope["data"], other["data"]) == ({"a": [1, None, "é"]}, {})
