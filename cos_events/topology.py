"""Names and builds every exchange and queue of the bus; nobody else spells one out.

| what | name | on RabbitMQ | on Redis |
| --- | --- | --- | --- |
| channel | `mem0.recorded.<module>` | - | `PUBLISH`, live, best effort |
| exchange | `mem0.recorded.<module>` | durable fanout | live fanout, best effort |
| subscription | `<name>` | quorum queue bound to each exchange it wants | list |
| dead letters | `<name>.dlq` | quorum queue | list |
| publish task | `cos_events.publish` | classic queue | list |
| redelivery | `cos_events.redeliver` | durable topic exchange, key = queue | - (default exchange) |
| discarded retries | `cos_events.discard` | queue that keeps nothing | - |
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kombu import Connection, Exchange, Queue

PUBLISH_QUEUE = "cos_events.publish"
"""Where the publish task waits; a worker that consumes it is a publisher."""

PUBLISH_TASK = "cos_events.publish"
"""The publish task's name."""

_DISCARD = Queue(
    "cos_events.discard", Exchange("cos_events.discard", type="fanout"), message_ttl=0.0
)
"""Takes the retries of a queue that was deleted; the ledger has them. RabbitMQ's delay queues never
give up a message that cannot be routed, and would block everybody's retries."""

_REDELIVER = Exchange(
    "cos_events.redeliver",
    type="topic",
    durable=True,
    arguments={"alternate-exchange": _DISCARD.name},
)
"""Carries Celery's retries on RabbitMQ: its native delay needs an exchange that is not direct, and
the fanout exchange would hand a retry to every other subscription too."""


def channel_name(module: str) -> str:
    """The Redis channel, and the exchange, on which the events of `module` are broadcast."""
    return f"mem0.recorded.{module}"


def dead_letter_queue_name(subscription: str) -> str:
    """The queue that takes what `subscription` could not deliver."""
    return f"{subscription}.dlq"


def is_rabbitmq(broker_url: str) -> bool:
    """Whether this broker speaks AMQP; otherwise it is Redis."""
    return broker_url.startswith(("amqp://", "amqps://", "pyamqp://"))


def fanout_exchange(module: str) -> Exchange:
    """The broadcast exchange of `module`; durable where the broker can be."""
    return Exchange(channel_name(module), type="fanout", durable=True)


class AddressedQueue(Queue):
    """One of the bus's queues, which says on each message that it is from there.

    A broadcast arrives with the exchange's name and routing key, and Redis gives no consumer tag:
    only the consumer that the broker called knows the queue. Retries and the worker read it from
    there (`delivery_info["routing_key"]`).
    """

    def consume(self, consumer_tag: str = "", callback: Any = None, *args: Any, **kw: Any) -> str:
        """As `kombu.Queue.consume`, with each message addressed to this queue."""

        def addressed(message: Any, *_: Any) -> Any:
            message.delivery_info.update(exchange="", routing_key=self.name)
            return callback(message)

        return super().consume(consumer_tag, addressed, *args, **kw)


class SubscriptionQueue(AddressedQueue):
    """A subscription's queue, bound to its own exchange and to each of its modules'.

    Kombu's own `bindings` would take the place of `exchange`, which Celery's native delay needs.
    """

    attrs = (*Queue.attrs, ("modules", None))
    modules: tuple[str, ...] = ()

    def queue_bind(self, nowait: bool = False, channel: Any = None) -> None:
        """Bind to the queue's own exchange, and to each module's."""
        super().queue_bind(nowait=nowait, channel=channel)
        if self.exchange.name == _REDELIVER.name:
            _DISCARD(channel or self.channel).declare(nowait=nowait)
        for module in self.modules:
            exchange = fanout_exchange(module)
            exchange.declare(nowait=nowait, channel=channel or self.channel)
            self.bind_to(exchange, nowait=nowait, channel=channel)


def subscription_queue(name: str, modules: Iterable[str], *, rabbitmq: bool) -> SubscriptionQueue:
    """The durable queue of a subscription, bound to the exchange of each of `modules`."""
    if not rabbitmq:
        return SubscriptionQueue(name)
    return SubscriptionQueue(
        name,
        _REDELIVER,
        routing_key=name,
        modules=tuple(sorted(modules)),
        queue_arguments=_quorum(dead_letter_to=dead_letter_queue_name(name)),
    )


def dead_letter_queue(subscription: str, *, rabbitmq: bool) -> Queue:
    """The queue of what `subscription` could not deliver."""
    name = dead_letter_queue_name(subscription)
    return Queue(name, Exchange(""), name, queue_arguments=_quorum() if rabbitmq else None)


def publish_queue(*, no_ack: bool = False) -> Queue:
    """The queue of the publish task: wake-ups only, so losing it loses no event.

    Args:
        no_ack: whether they are consumed without acknowledgement: the relay looks after the rows
            of a publisher that died.
    """
    return AddressedQueue(PUBLISH_QUEUE, Exchange(""), PUBLISH_QUEUE, no_ack=no_ack)


def _quorum(dead_letter_to: str | None = None) -> dict[str, Any]:
    arguments = {"x-queue-type": "quorum"}
    if dead_letter_to:
        arguments |= {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead_letter_to}
    return arguments


def unbind(connection: Connection, queue: Queue, module: str) -> None:
    """Stop the exchange of `module` copying into this queue; harmless if it does not."""
    with connection.channel() as channel:
        queue(channel).unbind_from(fanout_exchange(module)(channel))


def declare(connection: Connection, entities: Iterable[Exchange | Queue]) -> None:
    """Make these exchanges and queues exist on the broker; harmless if they already do."""
    with connection.channel() as channel:
        for entity in entities:
            entity(channel).declare()
