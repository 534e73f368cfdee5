"""A consumer that keeps what came, for tests of a transport."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kombu import Connection, Consumer, Producer, Queue

PATIENCE = 60.0

Connect = Callable[..., Connection]
"""Opens one, by the transport under test; takes its options."""


class Inbox:
    """Consumes queues, and keeps the messages that came."""

    def __init__(
        self, connection: Connection, *queues: Queue | str, prefetch: int = 0, no_ack: bool = False
    ) -> None:
        self.connection = connection
        self.messages: list[Any] = []
        self.channel: Any = connection.channel()
        self.consumer = Consumer(
            self.channel,
            [Queue(each) if isinstance(each, str) else each for each in queues],
            on_message=self.messages.append,
            accept=["json", "text/plain"],
            no_ack=no_ack,
            prefetch_count=prefetch,
        )
        self.consumer.consume()

    def receive(self, count: int) -> list[Any]:
        """Wait until it has so many; returns their bodies."""
        wait_until(lambda: len(self.messages) >= count, lambda: pump(self.connection))
        return self.bodies()

    def bodies(self) -> list[Any]:
        return [each.decode() for each in self.messages]

    def ack_all(self) -> None:
        for message in self.messages:
            if not message.acknowledged:
                message.ack()


def wait_until(reached: Callable[[], object], step: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline
        step()


def pump(connection: Connection, timeout: float = 0.2) -> bool:
    """Handle what comes, if anything does."""
    try:
        connection.drain_events(timeout=timeout)
    except TimeoutError:
        return False
    return True


def nothing_comes(connection: Connection) -> bool:
    """Whether all that was there has been handled."""
    wait_until(lambda: not pump(connection), lambda: None)
    return True


def send(connection: Connection, queue: str, *bodies: Any, priority: int = 0) -> None:
    with connection.channel() as channel:
        for body in bodies:
            Producer(channel).publish(body, routing_key=queue, priority=priority)
