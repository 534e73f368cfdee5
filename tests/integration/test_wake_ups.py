"""Without a publisher, wake-ups gather on the broker up to a bound."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kombu import Exchange, Queue

from cos_events import broker, dispatcher
from cos_events.dispatcher import PublishTaskSender
from cos_events.errors import BroadcastError


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
    assert fill(PublishTaskSender()).endswith("no publisher works")
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
