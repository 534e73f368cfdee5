"""What a broker must do for the bus, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cos_events.store.outbox import Pending
from cos_events.subscription import Recipient


@dataclass(frozen=True, slots=True)
class Copy:
    """An envelope for one subscription's queue alone.

    Attributes:
        envelope: its JSON.
        attempts: how many attempts it has had.
        traceparent: the trace context of its recording.
        redelivered: whether a worker may have received an earlier copy, and died from it.
    """

    envelope: str
    attempts: int = 0
    traceparent: str | None = None
    redelivered: bool = False


class BrokerWire(Protocol):
    """Carries envelopes to the queue of every subscription that wants them.

    Not thread-safe: one wire per thread. Connects on first use and again after a failure.
    """

    def open(self) -> None:
        """Connect now, unless already connected; one that was lost since is not noticed.

        Raises:
            BroadcastError: the broker does not answer. Raised within a bounded time.
        """
        ...

    def send(self, batch: Sequence[Pending], recipients: Sequence[Recipient]) -> None:
        """Put each envelope on its module's exchange and into each wanting subscription's queue.

        Returns only when the broker has taken the whole batch. A queue whose workers are down keeps
        its messages. Within one batch each queue gets its envelopes in the given order. The queue
        of a recipient that is holding gets none. Queues are declared on a new connection and for a
        new subscription; one that is deleted later misses its copies, like one whose broker loses
        its memory, and the relay sends them again.

        Raises:
            BroadcastError: the broker may have some of the batch, or none; sending it again is
                safe. Raised within a bounded time even when the broker never answers.
        """
        ...

    def send_to_queue(self, name: str, copies: Sequence[Copy]) -> None:
        """Put copies into one subscription's queue, in order, bypassing the exchange.

        Returns only when the broker has taken them all. The queue is made if needed.

        Raises:
            BroadcastError: as above.
        """
        ...

    def close(self) -> None:
        """Release the connection; the next `send` opens a new one."""
        ...
