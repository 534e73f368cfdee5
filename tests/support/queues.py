"""What is in a broker's queues, for tests of what sends to them."""

from __future__ import annotations

from kombu import Message, Queue

from cos_events import broker


def drain(queue: str) -> list[Message]:
    """Everything that is in the queue now, in order."""
    with broker.connect() as connection, connection.channel() as channel:
        return list(iter(lambda: Queue(queue, channel=channel).get(no_ack=True), None))


def text(message: Message) -> str:
    return message.body if isinstance(message.body, str) else bytes(message.body).decode()


def queued(queue: str) -> list[str]:
    """The same as text."""
    return [text(message) for message in drain(queue)]
