"""What the servers allow: a push in the hook, a pop that acknowledges nothing."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import amqp
import redis
from kombu import Connection

from benchmarks.peers import work

QUEUE = "peers.raw"


def after_commit(event: dict[str, Any]) -> None:
    if work.ON_RABBITMQ:
        _channel().basic_publish(amqp.Message(json.dumps(event)), routing_key=QUEUE)
    else:
        _client().lpush(QUEUE, json.dumps(event))


@cache
def _client() -> redis.Redis:
    return redis.Redis.from_url(work.BROKER_URL, socket_timeout=None)


@cache
def _channel() -> amqp.Channel:
    channel: amqp.Channel = Connection(work.BROKER_URL).connection.channel()
    channel.queue_declare(QUEUE, auto_delete=False)
    return channel


def main() -> None:
    """Pop until terminated."""
    if work.ON_RABBITMQ:
        channel = _channel()
        channel.basic_consume(
            QUEUE, no_ack=True, callback=lambda message: work.handled(json.loads(message.body))
        )
        while True:
            channel.connection.drain_events()
    while True:
        if item := _client().brpop([QUEUE], timeout=1):
            work.handled(json.loads(item[1]))


if __name__ == "__main__":
    main()
