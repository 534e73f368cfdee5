"""dramatiq: an actor, sent to in the hook."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers import work

dramatiq.set_broker(
    RabbitmqBroker(url=work.BROKER_URL, confirm_delivery=True)
    if work.ON_RABBITMQ
    else RedisBroker(url=work.BROKER_URL)
)


@dramatiq.actor
def handle(event: dict[str, Any]) -> None:
    work.handled(event)


def after_commit(event: dict[str, Any]) -> None:
    handle.send(event)
