"""Wake-ups: they gather on the broker up to a bound, and who acknowledges them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from celery import Celery
from kombu import Exchange, Queue
from sqlalchemy import Engine

from cos_events import broker, dispatcher, install, redis_transport
from cos_events.app import _prepare_worker
from cos_events.dispatcher import PublishTaskSender
from cos_events.embedded import Servers
from cos_events.errors import BroadcastError
from cos_events.topology import PUBLISH_QUEUE


@pytest.fixture
def queue(
    broker_url: str,
    clean_queues: list[str],
    unique: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """A publish queue of the test's own, full at ten, looked at after four."""
    name = unique("publish")
    clean_queues.append(name)
    monkeypatch.setattr(dispatcher, "publish_queue", lambda **_: Queue(name, Exchange(""), name))
    monkeypatch.setattr(dispatcher, "MAX_QUEUED", 10)
    monkeypatch.setattr(dispatcher, "LOOK_EVERY", 4)
    return name


def fill(send: PublishTaskSender) -> str:
    """Send wake-ups until they are refused; returns the reason."""
    with pytest.raises(BroadcastError) as refused:
        for number in range(100):
            send([number])
    return str(refused.value)


def test_wake_ups_that_nobody_takes_stay_at_their_bound(queue: str) -> None:
    assert fill(PublishTaskSender()).endswith("no publisher is working")
    depths = broker.queue_depths([queue])
    assert depths is not None
    # RabbitMQ counts what it has not yet been sent a moment later.
    assert 10 <= depths[queue] <= 10 + 4


def test_once_a_publisher_takes_them_others_follow(queue: str) -> None:
    send = PublishTaskSender()
    fill(send)
    with broker.connect() as connection, connection.channel() as channel:
        channel.queue_purge(queue)
    send([11])
    assert broker.queue_depths([queue]) == {queue: 1}


@pytest.mark.parametrize(
    ("transport", "no_ack"),
    [
        (None, True),
        (redis_transport.NAME, True),
        ("cos_events.redis_transport:Transport", True),
        ("redis", False),
    ],
)
def test_they_are_acknowledged_where_a_worker_has_kombus_own_transport_for_redis(
    database: Engine,
    environment: Callable[..., None],
    servers: Servers,
    transport: str | None,
    no_ack: bool,
) -> None:
    app = install(Celery("waking", broker=servers.redis_url, set_as_current=False))
    app.conf.broker_transport = transport
    _prepare_worker(SimpleNamespace(app=app), {"queues": None})
    assert app.amqp.queues.consume_from[PUBLISH_QUEUE].no_ack is no_ack
