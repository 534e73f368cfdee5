"""RabbitMQ's own delay carries the retries, and a deleted queue's retries block nobody's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from kombu import Exchange
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    calculate_routing_key,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from cos_events import broker
from cos_events.topology import (
    SubscriptionQueue,
    channel_name,
    declare,
    subscription_queue,
)

MORE_THAN_RABBITMQ_HOLDS = 64
"""Its dead-letter worker stops at 32 messages that cannot be routed."""


@pytest.fixture
def make_queue(
    rabbitmq_url: str, environment: Callable[..., None], unique: Callable[[str], str]
) -> Iterator[Callable[[], SubscriptionQueue]]:
    """Makes subscriptions' queues, set up for delayed messages as Celery's worker does."""
    environment(BROKER_URL=rabbitmq_url)
    made: list[SubscriptionQueue] = []

    def make() -> SubscriptionQueue:
        queue = subscription_queue(unique("sub"), [unique("module")], rabbitmq=True)
        made.append(queue)
        with broker.connect() as connection:
            declare(connection, [queue])
            declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
            bind_queue_to_native_delayed_delivery_exchange(connection, queue)
        return queue

    yield make
    with broker.connect() as connection, connection.channel() as channel:
        for queue in made:
            channel.queue_delete(queue.name)
            channel.exchange_delete(channel_name(queue.modules[0]))


def publish_delayed(queue: SubscriptionQueue, count: int = 1) -> None:
    with broker.connect() as connection:
        producer = connection.Producer()
        for _ in range(count):
            producer.publish(
                "{}",
                exchange=Exchange("celery_delayed_27", type="topic"),
                routing_key=calculate_routing_key(1, queue.name),
            )


def depth(name: str) -> int:
    return broker.queue_depths([name]).get(name, 0)


def test_a_delayed_message_comes_back_to_its_own_queue(
    make_queue: Callable[[], SubscriptionQueue], eventually: Callable[..., None]
) -> None:
    queue, other = make_queue(), make_queue()
    publish_delayed(queue)
    eventually(lambda: depth(queue.name) == 1)
    assert depth(other.name) == 0


def test_the_delayed_messages_of_a_deleted_queue_block_nobody(
    make_queue: Callable[[], SubscriptionQueue], eventually: Callable[..., None]
) -> None:
    deleted, other = make_queue(), make_queue()
    publish_delayed(deleted, MORE_THAN_RABBITMQ_HOLDS)
    broker.delete_queues([deleted.name])
    publish_delayed(other)
    eventually(lambda: depth(other.name) == 1)
