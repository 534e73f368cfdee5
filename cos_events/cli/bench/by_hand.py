"""The floor of a drain: Celery as people write it, without the bus and its transport.

A hook of their own calls `publish.delay`; the task publishes and enqueues the handler.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from redis import Redis

from cos_events.cli.bench.events import data_of, number_of
from cos_events.cli.bench.worker import handled
from cos_events.settings import get_settings

app = Celery("by_hand", broker=get_settings().broker_url, set_as_current=False)
app.conf.task_ignore_result = True
_channel = Redis.from_url(get_settings().redis_url)


@app.task
def publish(envelope: dict[str, Any]) -> None:
    """Tell the channel, then the handler's queue."""
    _channel.publish("bench.by_hand", str(envelope))
    handle.delay(envelope)


@app.task(acks_late=True)
def handle(envelope: dict[str, Any]) -> None:
    """The handler."""
    handled.get().put(number_of(envelope["data"]))


def fill_queue(numbers: range) -> None:
    """What so many commits would have enqueued on the broker of now."""
    with app.connection_for_write(get_settings().broker_url) as connection:
        producer = app.amqp.Producer(connection)
        for number in numbers:
            envelope = {"data": {**data_of(number), "attributes": {"n": number}}}
            publish.apply_async((envelope,), producer=producer)
