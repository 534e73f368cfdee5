"""What integration tests share: a bus of the test's own, and a Valkey to stop and freeze."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from celery import Celery
from kombu import Message, pools
from kombu.transport import native_delayed_delivery as native
from queues import drain
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from cos_events import Envelope, broker, capture, install, record_event, subscriber
from cos_events.broadcast.message import body_of
from cos_events.store import subscriptions
from cos_events.store.models import DeliveryRow, OutboxRow
from cos_events.subscribers import subscribers_of
from cos_events.topology import (
    channel_name,
    dead_letter_queue_name,
    declare,
    is_rabbitmq,
    subscription_queue,
)


class Bus:
    """A Celery application whose subscribers' tasks run in this process, on real servers.

    Attributes:
        module: the source module of all that is recorded here.
        app: the application.
    """

    def __init__(self, engine: Engine, url: str, module: str) -> None:
        self.module = module
        self.app = install(Celery(module, broker=url, set_as_current=False))
        self._engine = engine
        self._rabbitmq = is_rabbitmq(url)
        self.names: list[str] = []

    def declare(self, handler: Callable[..., Any], **options: Any) -> str:
        """Subscribe a handler, as a worker does when it starts; returns the subscription's name."""
        name = f"{self.module}_{len(self.names)}"
        self.names.append(name)
        subscriber(name, **options)(handler)
        queue = subscription_queue(name, [self.module], rabbitmq=self._rabbitmq)
        self.app.amqp.queues.add(queue)
        with broker.connect() as connection:
            declare(connection, [queue])
            if self._rabbitmq:
                native.declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
                native.bind_queue_to_native_delayed_delivery_exchange(connection, queue)
        with self._engine.begin() as connection:
            made = subscribers_of(self.app)[name]
            subscriptions.register(connection, [made.subscription], {name: made.start_from})
        return name

    def record(self, event_type: str = "event_log", **data: Any) -> str:
        """Commit an event; returns its envelope as it travels."""
        with Session(self._engine) as session:
            event_id = record_event(session, event_type, data, module=self.module)
            session.commit()
            found = select(OutboxRow.envelope).where(OutboxRow.event_id == event_id)
            return session.scalars(found).one()

    def envelopes(self) -> list[str]:
        """All that was committed here, in the order of recording."""
        ours = OutboxRow.source_module == self.module
        with Session(self._engine) as session:
            found = select(OutboxRow.envelope).where(ours).order_by(OutboxRow.id)
            return list(session.scalars(found))

    def run_queued(self, name: str) -> int:
        """Deliver all that is on the subscription's queue, each by itself; returns how many."""
        messages = self.queued(name)
        for message in messages:
            if message.headers.get("task"):
                self.run(name, message.payload[0][0][0], retries=message.headers["retries"])
            else:
                self.run(name, body_of(message).decode())
        return len(messages)

    def run(self, name: str, *raws: str, retries: int = 0) -> str:
        """Deliver these envelopes in one task; returns the state in which that ended."""
        state: str = self.app.tasks[name].apply(args=(list(raws),), retries=retries).state
        return state

    def row(self, name: str, raw: str) -> DeliveryRow | None:
        """What the ledger says."""
        with Session(self._engine, expire_on_commit=False) as session:
            return session.get(DeliveryRow, (name, Envelope.decode(raw).base_log_id))

    def state(self, name: str, raw: str) -> str | None:
        """The delivery's state; None without a row."""
        row = self.row(name, raw)
        return row.state if row else None

    def queued(self, name: str) -> list[Message]:
        """Takes what waits on the subscription's queue."""
        return drain(name)

    def dead_letters(self, name: str) -> list[Message]:
        """Takes what is on the subscription's dead-letter queue."""
        depths = broker.queue_depths([dead_letter_queue_name(name)])
        return drain(dead_letter_queue_name(name)) if depths else []

    def close(self) -> None:
        """Delete every queue, and the exchange."""
        pools.reset()
        broker.delete_queues([*self.names, *map(dead_letter_queue_name, self.names)])
        with broker.connect() as connection, connection.channel() as channel:
            channel.exchange_delete(channel_name(self.module))
            for name in self.names if self._rabbitmq else []:
                channel.exchange_unbind(
                    "cos_events.redeliver", native.CELERY_DELAYED_DELIVERY_EXCHANGE, f"#.{name}"
                )


@pytest.fixture
def make_bus(broker_url: str, unique: Callable[[str], str]) -> Iterator[Callable[[Engine], Bus]]:
    """A bus on a database; its queues are deleted afterwards."""
    with ExitStack() as endings:

        def make(engine: Engine) -> Bus:
            return endings.enter_context(closing(Bus(engine, broker_url, unique("bus"))))

        yield make


@pytest.fixture
def bus(database: Engine, make_bus: Callable[[Engine], Bus]) -> Bus:
    return make_bus(database)


@pytest.fixture(autouse=True)
def _no_wake_ups(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tests that run tasks by themselves, no publisher is woken."""
    if "make_bus" in request.fixturenames:
        monkeypatch.setattr("cos_events.capture.wake", lambda *_: None)


@pytest.fixture
def woken(monkeypatch) -> list[list[int]]:
    """The ids handed to the dispatcher, one list a wake-up."""
    handed_over: list[list[int]] = []
    monkeypatch.setattr(capture, "wake", lambda ids, _: handed_over.append(list(ids)))
    return handed_over


@pytest.fixture
def committed(database: Engine) -> Callable[[], dict[str, int]]:
    """What another connection sees: event type → outbox id."""

    def read() -> dict[str, int]:
        with database.connect() as connection:
            rows = connection.execute(select(OutboxRow.event_type, OutboxRow.id))
            return {row.event_type: row.id for row in rows}

    return read
