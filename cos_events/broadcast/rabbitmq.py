"""RabbitMQ: a durable fanout exchange a module, a quorum queue a subscription."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from cos_events import broker
from cos_events.errors import BroadcastError
from cos_events.settings import get_settings
from cos_events.store.outbox import Pending
from cos_events.subscription import Subscription
from cos_events.topology import channel_name, declare, fanout_exchange, subscription_queue

logger = logging.getLogger(__name__)


class RabbitMQWire:
    """Publishes each envelope once; the exchange copies it, confirms are drained once a batch."""

    def __init__(self) -> None:
        self._connection: Any = None
        self._channel: Any = None
        self._declared: set[tuple[str, Subscription | None]] = set()
        self._last_tag = 0
        self._unconfirmed: set[int] = set()
        self._refused = False

    def send(self, batch: Sequence[Pending], subscriptions: Sequence[Subscription]) -> None:
        """As the contract says."""
        try:
            channel = self._open()
            for module in {pending.source_module for pending in batch}:
                self._declare(module, subscriptions)
            for pending in batch:
                channel.basic_publish(
                    channel.prepare_message(
                        pending.envelope,
                        content_type="application/json",
                        content_encoding="utf-8",
                        properties={"delivery_mode": 2, "type": pending.event_type},
                    ),
                    exchange=channel_name(pending.source_module),
                )
                self._last_tag += 1
                self._unconfirmed.add(self._last_tag)
            self._await_confirms()
        except Exception as error:
            self.close()
            raise BroadcastError(f"RabbitMQ did not take the batch: {error}") from error

    def close(self) -> None:
        """As the contract says."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            connection.collect()

    def _open(self) -> Any:
        if self._channel is None:
            self._connection = broker.connect(confirm=False)
            self._channel = self._connection.channel()
            self._channel.confirm_select()
            self._channel.events["basic_ack"].add(self._on_ack)
            self._channel.events["basic_nack"].add(self._on_nack)
            self._last_tag = 0
            self._unconfirmed.clear()
            self._refused = False
            self._declared.clear()
        return self._channel

    def _declare(self, module: str, subscriptions: Sequence[Subscription]) -> None:
        wanted: set[tuple[str, Subscription | None]] = {(module, None)}
        wanted |= {(module, s) for s in subscriptions if s.modules is None or module in s.modules}
        for missing in wanted - self._declared:
            self._declared.add(missing)
            subscription = missing[1]
            if subscription is None:
                declare(self._connection, [fanout_exchange(module)])
                continue
            queue = subscription_queue(subscription.name, [module], rabbitmq=True)
            try:
                declare(self._connection, [queue])
            except self._connection.channel_errors as error:
                # One queue that somebody made otherwise must not stop all the others.
                logger.error("queue %s cannot be used: %s; delete it", queue.name, error)  # noqa: TRY400

    def _on_ack(self, delivery_tag: int, multiple: bool) -> None:
        if multiple:
            self._unconfirmed = {tag for tag in self._unconfirmed if tag > delivery_tag}
        else:
            self._unconfirmed.discard(delivery_tag)

    def _on_nack(self, _delivery_tag: int, _multiple: bool) -> None:
        self._refused = True

    def _await_confirms(self) -> None:
        while self._unconfirmed:
            self._connection.drain_events(timeout=get_settings().wire_timeout)
            if self._refused:
                raise BroadcastError("it refused a message")
