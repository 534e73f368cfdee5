"""A Redis that goes away does not end a worker that has messages in hand."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from kombu import Connection, Exchange, Queue
from kombu.common import ignore_errors

from cos_events.embedded import EmbeddedValkey
from cos_events.redis_guard import guard

WORK = Queue("work", Exchange(""), "work")
BROADCAST = Queue("broadcast", Exchange("broadcast", type="fanout"), auto_delete=True)
"""As a worker's remote control has: deleting it when the connection is lost fails first."""


def test_a_lost_connection_is_closed_as_celerys_worker_does_it_though_a_message_was_in_hand(
    valkey: EmbeddedValkey,
) -> None:
    connection: Any = Connection(valkey.url, transport_options={"socket_timeout": 1})
    received: list[Any] = []
    guard(connection.default_channel)
    for queue, channel in (
        (WORK, connection.default_channel),
        (BROADCAST, connection.channel()),
    ):
        connection.Consumer(queue, channel=channel, on_message=received.append).consume()
    connection.Producer().publish("event", routing_key="work")
    while not received:
        connection.drain_events(timeout=5)
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.1)
    valkey.stop()
    connection.collect(socket_timeout=1)
    ignore_errors(connection, connection.close)
    assert len(received) == 1
