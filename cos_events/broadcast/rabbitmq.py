"""RabbitMQ: a durable fanout exchange per module, a quorum queue per subscription.

The batch's frames rely on private parts of py-amqp: `Channel.events`, `Channel.channel_id`,
`Connection.frame_max` and `Connection.transport.write`. Tests of both directions, on a real server:
`tests/integration/test_broker_wire.py`; of the frames: `tests/unit/test_frames.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cos_events import broker
from cos_events.broadcast.bindings import Bindings
from cos_events.broadcast.contract import Copy
from cos_events.broadcast.frames import frames_of
from cos_events.broadcast.message import bytes_of, headers_of, message_of
from cos_events.error_text import one_line
from cos_events.errors import BroadcastError
from cos_events.settings import get_settings
from cos_events.store.outbox import Pending
from cos_events.subscription import Recipient
from cos_events.topology import channel_name, declare, subscription_queue

DECLARE_AGAIN_AFTER = 30.0
"""Seconds after which exchanges, queues and bindings are declared again: somebody may have deleted
one, and RabbitMQ silently drops what no binding takes."""

MAX_UNSENT = 256 * 1024
"""Bytes of messages that are sent to the server at once, not counting the last message."""


class RabbitMQWire:
    """Publishes each envelope once; the exchange copies it, confirms are drained once a batch."""

    def __init__(self) -> None:
        self._connection: Any = None
        self._channel: Any = None
        self._bindings: Bindings | None = None
        self._unbound: dict[tuple[str, str], frozenset[str] | None] = {}
        self._declared_at = 0.0
        self._last_tag = 0
        self._unconfirmed: set[int] = set()
        self._unsent = bytearray()
        self._refused = False

    def open(self) -> None:
        """As the contract says."""
        if self._channel is None:
            with self._confirmed("a connection"):
                pass

    def send(self, batch: Sequence[Pending], recipients: Sequence[Recipient]) -> None:
        """As the contract says."""
        with self._confirmed("the batch"):
            self._fresh_bindings().declare({each.source_module for each in batch}, recipients)
            for pending in batch:
                self._publish(
                    pending.envelope,
                    headers_of(pending.traceparent),
                    exchange=channel_name(pending.source_module),
                    type=pending.event_type,
                )

    def send_to_queue(self, name: str, copies: Sequence[Copy]) -> None:
        """As the contract says."""
        with self._confirmed(f"the messages for {name}"):
            declare(self._connection, [subscription_queue(name, (), rabbitmq=True)])
            for copy in copies:
                body, headers = message_of(name, copy)
                self._publish(body, headers, routing_key=name)

    def close(self) -> None:
        """As the contract says."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            connection.collect()

    @contextmanager
    def _confirmed(self, what: str) -> Iterator[None]:
        """What is published within has arrived by the end.

        Raises:
            BroadcastError: RabbitMQ did not take all of it.
        """
        try:
            self._open()
            yield
            self._await_confirms()
        except Exception as error:
            self.close()
            raise BroadcastError(f"RabbitMQ did not take {what}: {one_line(error)}") from error
        except BaseException:
            # Half a frame may have been sent, which nothing may follow.
            self.close()
            raise

    def _open(self) -> None:
        if self._channel is None:
            self._connection = broker.connect(confirm=False)
            self._channel = self._connection.channel()
            self._channel.confirm_select()
            self._channel.events["basic_ack"].add(self._on_ack)
            self._channel.events["basic_nack"].add(self._on_nack)
            self._last_tag = 0
            self._unconfirmed.clear()
            self._unsent.clear()
            self._refused = False
            self._bindings = None

    def _fresh_bindings(self) -> Bindings:
        now = time.monotonic()
        if self._bindings is None or now - self._declared_at > DECLARE_AGAIN_AFTER:
            self._bindings, self._declared_at = Bindings(self._connection, self._unbound), now
        return self._bindings

    def _publish(self, body: str, headers: dict[str, Any], **where: str) -> None:
        channel = self._channel
        self._last_tag += 1
        self._unconfirmed.add(self._last_tag)
        self._unsent += frames_of(
            bytes_of(body),
            headers,
            channel=channel.channel_id,
            frame_max=channel.connection.frame_max,
            **where,
        )
        if len(self._unsent) > MAX_UNSENT:
            self._flush()

    def _flush(self) -> None:
        # With TLS py-amqp writes 16 KiB and cuts them off the rest: a view is cut without a copy.
        self._channel.connection.transport.write(memoryview(bytes(self._unsent)))
        self._unsent.clear()

    def _on_ack(self, delivery_tag: int, multiple: bool) -> None:
        if multiple:
            self._unconfirmed = {tag for tag in self._unconfirmed if tag > delivery_tag}
        else:
            self._unconfirmed.discard(delivery_tag)

    def _on_nack(self, _delivery_tag: int, _multiple: bool) -> None:
        self._refused = True

    def _await_confirms(self) -> None:
        self._flush()
        while self._unconfirmed:
            self._connection.drain_events(timeout=get_settings().wire_timeout)
            if self._refused:
                raise BroadcastError("it refused a message")
