"""Redis: one message of its own for each subscription, and the live fanout exchange."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cos_events import broker
from cos_events.broadcast.contract import Copy
from cos_events.broadcast.message import headers_of, message_of
from cos_events.errors import BroadcastError
from cos_events.store.outbox import Pending
from cos_events.subscription import Recipient
from cos_events.topology import channel_name, declare, fanout_exchange

MAX_PIPELINE = 1_000
"""The most Redis commands in one pipeline."""

_OPTIONS = {"content_type": "application/json", "content_encoding": "utf-8", "retry": False}


class RedisWire:
    """Pushes through the default exchange; the fanout exchange is for live listeners only.

    A plain list push needs no binding, so it survives FLUSHALL. A Redis fanout keeps nothing for
    the absent.
    """

    def __init__(self) -> None:
        self._connection: Any = None
        self._producer: Any = None
        self._declared: set[str] = set()

    def send(self, batch: Sequence[Pending], recipients: Sequence[Recipient]) -> None:
        """As the contract says."""
        with self._pipeline({each.source_module for each in batch}) as producer:
            for pending in batch:
                exchange = channel_name(pending.source_module)
                options = {**_OPTIONS, "headers": headers_of(pending.traceparent)}
                producer.publish(pending.envelope, exchange=exchange, **options)
                for each in recipients:
                    if not each.holding and each.wants(pending.source_module, pending.event_type):
                        producer.publish(
                            pending.envelope, exchange="", routing_key=each.name, **options
                        )

    def send_to_queue(self, name: str, copies: Sequence[Copy]) -> None:
        """As the contract says."""
        with self._pipeline() as producer:
            for copy in copies:
                body, headers = message_of(name, copy)
                producer.publish(body, exchange="", routing_key=name, headers=headers, **_OPTIONS)

    def close(self) -> None:
        """As the contract says."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            connection.collect()

    @contextmanager
    def _pipeline(self, modules: Iterable[str] = ()) -> Iterator[Any]:
        try:
            producer = self._open()
            if new := set(modules) - self._declared:
                # Once a connection: Kombu keeps an exchange's type there, not on the server.
                declare(self._connection, map(fanout_exchange, sorted(new)))
                self._declared |= new
            with producer.batch(max_size=MAX_PIPELINE):
                yield producer
        except Exception as error:
            self.close()
            raise BroadcastError(f"Redis did not take the messages: {error}") from error

    def _open(self) -> Any:
        if self._producer is None:
            self._connection = broker.connect()
            self._producer = self._connection.Producer(auto_declare=False)
            self._declared.clear()
        return self._producer
