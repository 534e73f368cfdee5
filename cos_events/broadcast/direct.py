"""To one subscription's queue alone, once: what the relay and a worker send again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from cos_events.broadcast.broadcaster import make_wire
from cos_events.broadcast.contract import Copy


def send_to_queue(name: str, copies: Sequence[Copy]) -> None:
    """Put copies into a subscription's queue, past the exchange; the queue is made if needed.

    Raises:
        BroadcastError: the broker did not take them.
    """
    with closing(make_wire()) as wire:
        wire.send_to_queue(name, copies)
