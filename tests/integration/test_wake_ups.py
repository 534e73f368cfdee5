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
    monkeypatch.setattr(dispatcher, "publish_queue", lambda: Queue(name, Exchange(""), name))
    monkeypatch.setattr(dispatcher, "MAX_QUEUED", 10)
    monkeypatch.setattr(dispatcher, "LOOK_EVERY", 4)
    return name


def test_wake_ups_that_nobody_takes_stay_at_their_bound(queue: str) -> None:
    send = PublishTaskSender()
    for number in range(10):
        send([number])
    with pytest.raises(BroadcastError, match="10 wake-ups wait on .*: no publisher works"):
        send([10])
    assert broker.queue_depths([queue]) == {queue: 10}


def test_once_a_publisher_takes_them_others_follow(queue: str) -> None:
    send = PublishTaskSender()
    for number in range(10):
        send([number])
    with pytest.raises(BroadcastError):
        send([10])
    with broker.connect() as connection, connection.channel() as channel:
        channel.queue_purge(queue)
    send([11])
    assert broker.queue_depths([queue]) == {queue: 1}
