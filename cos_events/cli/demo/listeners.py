"""Strangers who listen to both wires while the demo runs: a Redis client and an AMQP consumer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

from kombu import Queue
from redis import Redis

from cos_events import broker
from cos_events.broadcast.message import body_of
from cos_events.envelope import Envelope
from cos_events.settings import get_settings
from cos_events.topology import channel_name, fanout_exchange


class Heard:
    """What one listener has heard: each event's id and when, in seconds since the epoch."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self.copies = 0

    def has(self, event_id: UUID) -> bool:
        """Whether this event was heard."""
        return str(event_id) in self.at

    def take(self, body: str | bytes) -> None:
        """Note one envelope."""
        self.at.setdefault(str(Envelope.decode(body).base_log_id), time.time())
        self.copies += 1


@contextmanager
def listening() -> Iterator[tuple[Heard, Heard]]:
    """Hear the channel, and the exchange, of this process's module while the body runs."""
    module = get_settings().module
    on_channel, on_exchange = Heard(), Heard()
    stop = threading.Event()
    with (
        Redis.from_url(get_settings().redis_url) as redis,
        redis.pubsub(ignore_subscribe_messages=True) as pubsub,
        broker.connect() as connection,
        connection.channel() as channel,
    ):
        pubsub.subscribe(channel_name(module))
        pubsub.get_message(timeout=5)
        queue = Queue("", fanout_exchange(module), exclusive=True, auto_delete=True)

        def on_message(message: Any) -> None:
            on_exchange.take(body_of(message))
            message.ack()

        consumer = connection.Consumer(queue, channel=channel, on_message=on_message)
        consumer.consume()

        def hear_channel() -> None:
            message = pubsub.get_message(timeout=0.1)
            if message:
                on_channel.take(message["data"])

        def hear_exchange() -> None:
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.1)

        threads = [
            threading.Thread(target=_until, args=(stop, hear), daemon=True)
            for hear in (hear_channel, hear_exchange)
        ]
        for thread in threads:
            thread.start()
        try:
            yield on_channel, on_exchange
        finally:
            stop.set()
            for thread in threads:
                thread.join(timeout=2)


def _until(stop: threading.Event, hear: Callable[[], None]) -> None:
    while not stop.is_set():
        hear()
