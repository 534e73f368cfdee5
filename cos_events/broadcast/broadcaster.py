"""Both wires together, and the broker's alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from cos_events import broker, telemetry
from cos_events.broadcast.channel import ChannelWire
from cos_events.broadcast.contract import BrokerWire, Copy
from cos_events.broadcast.rabbitmq import RabbitMQWire
from cos_events.broadcast.redis import RedisWire
from cos_events.store.outbox import Pending
from cos_events.subscription import Recipient
from cos_events.telemetry import names


class Broadcaster:
    """Puts a batch onto the broker, then onto the channel; each wire fails on its own.

    The channel comes second: what listeners saw live is then certain to be on its way to every
    subscription. Not thread-safe.
    """

    def __init__(self, broker_wire: BrokerWire, channel: ChannelWire) -> None:
        self._broker = broker_wire
        self._channel = channel

    def open(self) -> None:
        """Connect to the broker, if it is not.

        Raises:
            BroadcastError: it does not answer.
        """
        self._broker.open()

    def broadcast(self, batch: Sequence[Pending], recipients: Sequence[Recipient]) -> None:
        """Send a batch of envelopes.

        Raises:
            BroadcastError: the broker did not take it; then it did not go to the channel either.
        """
        with telemetry.span(names.BROADCAST, attributes={names.COUNT: len(batch)}):
            self._broker.send(batch, recipients)
            self._channel.send(batch)

    def close(self) -> None:
        """Release both connections."""
        self._broker.close()
        self._channel.close()


def make_wire() -> BrokerWire:
    """A wire to the bus's broker."""
    return RabbitMQWire() if broker.on_rabbitmq() else RedisWire()


def send_to_queue(name: str, copies: Sequence[Copy]) -> None:
    """Put copies into a subscription's queue, over a separate connection; see `BrokerWire`.

    Raises:
        BroadcastError: the broker did not take them.
    """
    with closing(make_wire()) as wire:
        wire.send_to_queue(name, copies)


def make_broadcaster() -> Broadcaster:
    """A broadcaster on the bus's broker and on `REDIS_URL`."""
    return Broadcaster(make_wire(), ChannelWire())
