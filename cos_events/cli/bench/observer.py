"""A process that hears and handles without the bus: what the servers alone allow.

    python -m cos_events.cli.bench.observer channel MODULE
    python -m cos_events.cli.bench.observer queue

`channel` notes when each event of this module, or of the floor, is heard on Redis; `queue` takes
events from the floor's own queue on the broker, and does nothing but note the time.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import redis
from kombu import Connection

from cos_events import broker
from cos_events.cli.bench.events import number_of
from cos_events.cli.bench.marks import Marks
from cos_events.cli.bench.worker import FOLDER, HANDLED
from cos_events.settings import get_settings
from cos_events.topology import channel_name

FLOOR = "bench.floor"
"""The floor's channel, and its queue on the broker."""

HEARD = "heard"
"""The file of the times at which events came over a channel."""

READY = b"observing"
"""What an observer prints when it can miss nothing any more."""


def main() -> None:
    """Observe until terminated."""
    folder = Path(os.environ[FOLDER])
    if sys.argv[1] == "channel":
        _hear(channel_name(sys.argv[2]), Marks(folder / HEARD))
    elif broker.on_rabbitmq():
        _consume(Marks(folder / HANDLED))
    else:
        _pop(Marks(folder / HANDLED))


def _ready() -> None:
    print(READY.decode(), flush=True)


def _client(url: str) -> redis.Redis:
    # It outlives a server that stands still for as long as a run freezes it.
    return redis.Redis.from_url(url, socket_timeout=None)


def _note(marks: Marks, raw: Any) -> None:
    marks.put(number_of(json.loads(raw)["data"]))


def _hear(channel: str, marks: Marks) -> None:
    with _client(get_settings().redis_url) as client, client.pubsub() as listener:
        listener.subscribe(FLOOR, channel)
        subscribed = 0
        for message in listener.listen():
            if message["type"] == "subscribe":
                subscribed += 1
                if subscribed == 2:
                    _ready()
            else:
                _note(marks, message["data"])


def _pop(marks: Marks) -> None:
    with _client(broker.broker_url()) as client:
        _ready()
        while True:
            if (item := client.brpop([FLOOR], timeout=1)) is not None:
                _note(marks, item[1])


def _consume(marks: Marks) -> None:
    # Kombu's own: the bus's connections wait for an answer in bounded time.
    own: Any = Connection(broker.broker_url())
    with own as connection, connection.channel() as channel:
        channel.queue_declare(FLOOR, auto_delete=False)
        channel.basic_consume(
            FLOOR, no_ack=True, callback=lambda message: _note(marks, message.body)
        )
        _ready()
        while True:
            connection.drain_events()


if __name__ == "__main__":
    main()
