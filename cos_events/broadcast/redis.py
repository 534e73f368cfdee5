"""Redis: a separate message for each subscription, and the live fanout exchange.

The pipeline relies on private parts of Kombu: `Channel.conn_or_acquire` and
`Channel.keyprefix_fanout`. `tests/integration/test_broker_wire.py` receives what it sends with
Kombu, on a real server.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import zip_longest
from typing import Any

from cos_events import broker
from cos_events.broadcast.contract import Copy
from cos_events.broadcast.message import bytes_of, headers_of, message_of
from cos_events.error_text import one_line
from cos_events.errors import BroadcastError
from cos_events.redis_message import RedisMessage
from cos_events.store.outbox import Pending
from cos_events.subscription import Recipient
from cos_events.topology import channel_name

logger = logging.getLogger(__name__)

MAX_BUFFERED = 2_000_000
"""The most characters in one pipeline, not counting its last message."""


class RedisWire:
    """Pushes into each queue's list; the fanout exchange is for live listeners only.

    A plain list push needs no binding, so it survives FLUSHALL. A Redis fanout keeps nothing for
    absent listeners.
    """

    def __init__(self) -> None:
        self._connection: Any = None

    def open(self) -> None:
        """As the contract says."""
        if self._connection is None:
            with self._pipeline():
                pass

    def send(self, batch: Sequence[Pending], recipients: Sequence[Recipient]) -> None:
        """As the contract says."""
        with self._pipeline() as pipeline:
            for pending in batch:
                headers = headers_of(pending.traceparent)
                message = RedisMessage(bytes_of(pending.envelope), headers)
                pipeline.publish(message, channel_name(pending.source_module))
                for each in recipients:
                    if not each.holding and each.wants(pending.source_module, pending.event_type):
                        pipeline.push(message, each.name)

    def send_to_queue(self, name: str, copies: Sequence[Copy]) -> None:
        """As the contract says."""
        with self._pipeline() as pipeline:
            for copy in copies:
                body, headers = message_of(name, copy)
                pipeline.push(RedisMessage(bytes_of(body), headers), name)

    def close(self) -> None:
        """As the contract says."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.collect()

    @contextmanager
    def _pipeline(self) -> Iterator[_Pipeline]:
        try:
            if self._connection is None:
                self._connection = broker.connect()
            # A new one asks the server whether it is there.
            channel = self._connection.default_channel
            with channel.conn_or_acquire() as client:
                pipeline = _Pipeline(client, channel.keyprefix_fanout)
                yield pipeline
                pipeline.flush()
        except Exception as error:
            self.close()
            raise BroadcastError(f"Redis did not take the messages: {one_line(error)}") from error


class _Pipeline:
    """Few commands for many messages; those of one queue stay in their order."""

    def __init__(self, client: Any, fanout_prefix: str) -> None:
        self._client = client
        self._fanout_prefix = fanout_prefix
        self._published: list[tuple[str, str]] = []
        self._pushed: defaultdict[str, list[str]] = defaultdict(list)
        self._buffered = 0

    def publish(self, message: RedisMessage, exchange: str) -> None:
        """To whoever listens to a fanout exchange."""
        raw = message.to("", exchange)
        self._published.append((f"{self._fanout_prefix}{exchange}", raw))
        self._add(raw)

    def push(self, message: RedisMessage, queue: str) -> None:
        """Into a queue."""
        raw = message.to(queue)
        self._pushed[queue].append(raw)
        self._add(raw)

    def _add(self, raw: str) -> None:
        self._buffered += len(raw)
        if self._buffered > MAX_BUFFERED:
            self.flush()

    def flush(self) -> None:
        """Send what there is."""
        with self._client.pipeline(transaction=False) as commands:
            for queue, messages in self._pushed.items():
                commands.lpush(queue, *messages)
            for channel, message in self._published:
                commands.publish(channel, message)
            answers = commands.execute(raise_on_error=False)
        for queue, answer in zip_longest(self._pushed, answers):
            if queue is not None and "WRONGTYPE" in str(answer):
                # One key that somebody uses for something else must not stop all the others.
                _complain(queue, str(answer))
            elif isinstance(answer, Exception):
                raise answer
        self._published.clear()
        self._pushed.clear()
        self._buffered = 0


@cache
def _complain(queue: str, why: str) -> None:
    logger.error("queue %s cannot be used: %s; delete or rename that key", queue, why)
