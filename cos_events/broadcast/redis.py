"""Redis: one message of its own for each subscription, and the live fanout exchange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cos_events import broker
from cos_events.errors import BroadcastError
from cos_events.store.outbox import Pending
from cos_events.subscription import Subscription
from cos_events.topology import fanout_exchange

MAX_PIPELINE = 1_000
"""The most Redis commands in one pipeline."""


class RedisWire:
    """Pushes through the default exchange; the fanout exchange is for live listeners only.

    A plain list push needs no binding, so it survives FLUSHALL. A Redis fanout keeps nothing for
    the absent.
    """

    def __init__(self) -> None:
        self._connection: Any = None
        self._producer: Any = None

    def send(self, batch: Sequence[Pending], subscriptions: Sequence[Subscription]) -> None:
        """As the contract says."""
        try:
            producer = self._open()
            with producer.batch(max_size=MAX_PIPELINE):
                for pending in batch:
                    self._publish(producer, pending, subscriptions)
        except Exception as error:
            self.close()
            raise BroadcastError(f"Redis did not take the batch: {error}") from error

    def close(self) -> None:
        """As the contract says."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            connection.collect()

    def _open(self) -> Any:
        if self._producer is None:
            self._connection = broker.connect()
            self._producer = self._connection.Producer(auto_declare=False)
        return self._producer

    @staticmethod
    def _publish(producer: Any, pending: Pending, subscriptions: Sequence[Subscription]) -> None:
        message = {
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "retry": False,
        }
        exchange = fanout_exchange(pending.source_module)
        producer.publish(pending.envelope, exchange=exchange, declare=[exchange], **message)
        for subscription in subscriptions:
            if subscription.wants(pending.source_module, pending.event_type):
                producer.publish(
                    pending.envelope, exchange="", routing_key=subscription.name, **message
                )
