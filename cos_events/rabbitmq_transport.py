"""Kombu's RabbitMQ transport, with less work for each message that a worker receives.

Kombu's own goes once through the worker's event loop for each message, and py-amqp writes a frame
for each acknowledgement, which a quorum queue notes in its log. Here a turn of the loop takes what
has arrived, and what is acknowledged together goes in one frame as far as AMQP can say it: up to
the delivery below which nothing is in hand any more.

For any Celery application: import this module, and set `broker_transport` to one of these names.

What this stands on: a channel of py-amqp numbers its deliveries from 1; Kombu's `Message.ack` and
`reject` call its `basic_ack` and `basic_reject`; `Transport.on_readable` is called when there is
something to read, and py-amqp's `drain_events(timeout=0)` raises a timeout once there is nothing.
Tests run each of them on a real server.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from amqp import RecoverableConnectionError
from kombu.transport import TRANSPORT_ALIASES, pyamqp

# The stubs know too little of these classes.
_pyamqp: Any = pyamqp

NAME, TLS_NAME = "amqp-batch", "amqps-batch"
"""For Celery's `broker_transport`, or Kombu's `transport`; the URL keeps its scheme."""

MAX_READ = 20
"""The most messages of one turn: what else the event loop has to do shall not wait for long."""


class Channel(_pyamqp.Channel):  # type: ignore[misc]
    """Knows which of its deliveries are settled. Thread-safe in that: pools end tasks in theirs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._settling = threading.RLock()
        self._gathered: list[int] | None = None
        super().__init__(*args, **kwargs)

    def open(self) -> Any:
        """Open it; after an error py-amqp does so again, and the deliveries begin anew."""
        self._settled_through = 0
        self._settled_above: set[int] = set()
        return super().open()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is acknowledged in this block goes at its end, in as few frames as possible."""
        with self._settling:
            self._gathered = []
            try:
                yield
            finally:
                gathered, self._gathered = self._gathered, None
                self._acknowledge(gathered)

    def basic_ack(self, delivery_tag: int, multiple: bool = False, **options: Any) -> Any:
        """Acknowledge one delivery, or all up to it."""
        with self._settling:
            if self._gathered is not None and not multiple:
                return self._gathered.append(delivery_tag)
            first = self._settled_through + 1 if multiple else delivery_tag
            self._settle(range(first, delivery_tag + 1))
            return super().basic_ack(delivery_tag, multiple=multiple, **options)

    def basic_reject(self, delivery_tag: int, requeue: bool, **options: Any) -> Any:
        """Reject one delivery."""
        with self._settling:
            self._settle([delivery_tag])
            return super().basic_reject(delivery_tag, requeue, **options)

    def _acknowledge(self, tags: list[int]) -> None:
        self._settle(tags)
        if below := [tag for tag in tags if tag <= self._settled_through]:
            super().basic_ack(max(below), multiple=True)
        for tag in tags:
            if tag > self._settled_through:
                super().basic_ack(tag)

    def _settle(self, tags: Iterable[int]) -> None:
        self._settled_above.update(tags)
        while self._settled_through + 1 in self._settled_above:
            self._settled_through += 1
            self._settled_above.remove(self._settled_through)


class Connection(_pyamqp.Connection):  # type: ignore[misc]
    """Makes such channels."""

    Channel = Channel


class Transport(_pyamqp.Transport):  # type: ignore[misc]
    """The transport, for `broker_transport`."""

    Connection = Connection

    def on_readable(self, connection: Any, loop: Any) -> None:
        """Take what has arrived."""
        for _ in range(MAX_READ):
            if not connection.connected:
                raise RecoverableConnectionError("the connection to the broker is closed")
            try:
                connection.drain_events(timeout=0)
            except (TimeoutError, BlockingIOError, InterruptedError):
                return
        # py-amqp may have read more of them from the socket than were asked for.
        loop.call_soon(self.on_readable, connection, loop)


class TLSTransport(Transport):
    """The same, for `amqps://`."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        # As Kombu does for its own scheme.
        client.ssl = client.ssl or True


TRANSPORT_ALIASES.setdefault(NAME, f"{__name__}:Transport")
TRANSPORT_ALIASES.setdefault(TLS_NAME, f"{__name__}:TLSTransport")
