"""What a broker must do for the bus, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cos_events.store.outbox import Pending
from cos_events.subscription import Subscription


class BrokerWire(Protocol):
    """Carries envelopes to the queue of every subscription that wants them.

    Not thread-safe: one wire a thread. Connects on first use and again after a failure.
    """

    def send(self, batch: Sequence[Pending], subscriptions: Sequence[Subscription]) -> None:
        """Put each envelope on its module's exchange and into each wanting subscription's queue.

        Returns only when the broker has taken the whole batch. A queue whose workers are away keeps
        its messages. Within one batch each queue gets its envelopes in the given order. Queues are
        made on a new connection and for a new subscription; one that is deleted meanwhile misses
        its copies, as one whose broker loses its memory does, and the relay sends them again.

        Raises:
            BroadcastError: the broker may have some of the batch, or none; sending it again is
                safe. Raised within a bounded time also when the broker never answers.
        """
        ...

    def close(self) -> None:
        """Give the connection back; the next `send` opens a new one."""
        ...
