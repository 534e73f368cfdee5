"""Kombu's RabbitMQ transport, with less work for each message that a worker receives.

Kombu's own goes through the worker's event loop once for each message; py-amqp makes fifteen system
calls to read one, and writes a frame for each acknowledgement, which a quorum queue notes in its
log. Here a turn of the loop reads all that has arrived, and what is acknowledged together goes in
one frame as far as AMQP allows: up to the delivery below which nothing is unacknowledged. A message
whose properties cannot be decoded arrives without them, instead of ending each worker that gets it;
and TLS verifies the server's name, not only who signed its certificate.

For any Celery application: import this module, and set `broker_transport` to one of these names.

What this stands on: a channel of py-amqp numbers its deliveries from 1; Kombu's `Message.ack` and
`reject` call its `basic_ack` and `basic_reject`; `Transport.on_readable` is called when there is
something to read; py-amqp's transport reads from its private `_read_buffer` first, and its
connection takes a frame by `on_inbound_frame`, which its argument `frame_handler` makes, and
`collect` shuts down the socket of its private `_transport`. Tests run each on a real server.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from struct import Struct
from typing import Any

from amqp import RecoverableConnectionError
from amqp.method_framing import frame_handler
from kombu.transport import TRANSPORT_ALIASES, pyamqp

# The stubs know too little of these classes.
_pyamqp: Any = pyamqp

NAME, TLS_NAME = "amqp-batch", "amqps-batch"
"""For Celery's `broker_transport`, or Kombu's `transport`; the URL keeps its scheme."""

MAX_READ = 16_384
"""The most bytes per turn: what else the event loop has to do should not wait long."""

_FRAME_OVERHEAD = 8
"""Bytes of a frame besides its payload: AMQP 0-9-1, 4.2.3."""

_PAYLOAD_SIZE = Struct(">I")

_CONTENT_HEADER, _BEFORE_PROPERTIES = 2, 12
"""The type of a frame that holds a message's properties, and its bytes before them: class, weight
and body size. AMQP 0-9-1, 2.3.5.2."""


class Channel(_pyamqp.Channel):  # type: ignore[misc]
    """Knows which of its deliveries are settled. Thread-safe in that: a task may end in any thread.

    They are kept as runs of neighbours, no more than the unsettled deliveries between them require.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._settling = threading.RLock()
        self._gathered: list[int] | None = None
        super().__init__(*args, **kwargs)

    def open(self) -> Any:
        """Open it; after an error py-amqp does so again, and deliveries start again from 1."""
        self._last_of_run: dict[int, int] = {}
        self._first_of_run: dict[int, int] = {}
        return super().open()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is acknowledged in this block is sent at its end, in as few frames as possible."""
        with self._settling:
            if self._gathered is not None:
                yield
                return
            self._gathered = []
            try:
                yield
            finally:
                gathered, self._gathered = self._gathered, None
                self._acknowledge(gathered)

    def basic_ack(self, delivery_tag: int, multiple: bool = False, **options: Any) -> Any:
        """Acknowledge one delivery, or all up to it."""
        with self._settling:
            if not multiple:
                if self._gathered is not None:
                    return self._gathered.append(delivery_tag)
                self._settle(delivery_tag)
            else:
                if self._gathered is not None:
                    self._gathered = [tag for tag in self._gathered if tag > delivery_tag]
                self._settle_through(delivery_tag)
            return super().basic_ack(delivery_tag, multiple=multiple, **options)

    def basic_reject(self, delivery_tag: int, requeue: bool, **options: Any) -> Any:
        """Reject one delivery."""
        with self._settling:
            # First, since it may fail: it would then be acknowledged with its neighbours.
            rejected = super().basic_reject(delivery_tag, requeue, **options)
            self._settle(delivery_tag)
            return rejected

    def _acknowledge(self, tags: list[int]) -> None:
        for tag in tags:
            self._settle(tag)
        through = self._last_of_run.get(1, 0)
        if below := [tag for tag in tags if tag <= through]:
            super().basic_ack(max(below), multiple=True)
        for tag in tags:
            if tag > through:
                super().basic_ack(tag)

    def _settle(self, tag: int) -> None:
        first = self._first_of_run.pop(tag - 1, tag)
        last = self._last_of_run.pop(tag + 1, tag)
        self._last_of_run[first], self._first_of_run[last] = last, first

    def _settle_through(self, tag: int) -> None:
        for first in [first for first in self._last_of_run if first <= tag + 1]:
            last = self._last_of_run.pop(first)
            del self._first_of_run[last]
            tag = max(tag, last)
        self._last_of_run[1], self._first_of_run[tag] = tag, 1


def _frame_handler(connection: Any, callback: Any) -> Callable[[tuple[int, int, Any]], Any]:
    """As py-amqp's own; but properties that cannot be decoded are left out.

    Such as a time in milliseconds, or text that is not UTF-8. An exception here would end the
    worker, and the message would come again.
    """
    take = frame_handler(connection, callback)

    def on_frame(frame: tuple[int, int, Any]) -> Any:
        try:
            return take(frame)
        except Exception:
            kind, channel, payload = frame
            if kind != _CONTENT_HEADER:
                raise
            return take((kind, channel, bytes(payload[:_BEFORE_PROPERTIES]) + b"\0\0"))

    return on_frame


class Connection(_pyamqp.Connection):  # type: ignore[misc]
    """Makes such channels; and a forked child leaves it to its parent."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._process = os.getpid()
        super().__init__(*args, frame_handler=_frame_handler, **kwargs)

    def collect(self) -> None:
        """Drop the connection without telling the server.

        Kombu's pools do so in each child. py-amqp would shut the socket down, for the parent too.
        """
        transport = self._transport
        if os.getpid() != self._process and transport is not None and transport.sock is not None:
            transport.sock.close()
            transport.sock = None
        super().collect()


class Transport(_pyamqp.Transport):  # type: ignore[misc]
    """The transport, for `broker_transport`."""

    Connection = Connection

    def on_readable(self, connection: Any, loop: Any) -> None:  # noqa: ARG002 - Kombu's signature
        """Take what has arrived.

        Raises:
            RecoverableConnectionError: the connection was closed.
            OSError: it was lost.
        """
        if not connection.connected:
            raise RecoverableConnectionError("the connection to the broker is closed")
        transport = connection.transport
        try:
            with transport.having_timeout(0):
                arrived = transport.sock.recv(MAX_READ)
        except (TimeoutError, BlockingIOError, InterruptedError):
            return
        except OSError:
            transport.connected = False
            raise
        if not arrived:
            # py-amqp will find the same, and report it as usual.
            connection.drain_events(timeout=0)
        transport._read_buffer += arrived  # noqa: SLF001 - where py-amqp looks before it reads
        while connection.connected and _begins_with_frame(transport._read_buffer):  # noqa: SLF001
            connection.on_inbound_frame(transport.read_frame())


def _begins_with_frame(buffered: bytes) -> bool:
    """Whether a whole frame is there: type (1 byte), channel (2), size (4), payload, end (1)."""
    there = len(buffered) - _FRAME_OVERHEAD
    return there >= 0 and there >= _PAYLOAD_SIZE.unpack_from(buffered, 3)[0]


class TLSTransport(Transport):
    """The same, for `amqps://`."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        if not client.ssl or client.ssl is True:
            # Kombu's own scheme verifies the certificate, but not whose it is.
            client.ssl = {"server_hostname": client.hostname}

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have the loop read what it sees, and what only OpenSSL knows about.

        Code that waits for a reply reads only that, not what was decrypted along with it.
        """

        def take_decrypted() -> None:
            while connection.connected and connection.sock.pending():
                self.on_readable(connection, loop)
            if not connection.connected:
                loop.on_tick.discard(take_decrypted)

        super().register_with_event_loop(connection, loop)
        loop.on_tick.add(take_decrypted)


TRANSPORT_ALIASES.setdefault(NAME, f"{__name__}:Transport")
TRANSPORT_ALIASES.setdefault(TLS_NAME, f"{__name__}:TLSTransport")
