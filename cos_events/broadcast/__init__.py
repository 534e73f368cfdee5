"""A batch of committed envelopes, onto both wires: the Redis channel and the broker."""

from cos_events.broadcast.broadcaster import (
    Broadcaster,
    make_broadcaster,
    make_wire,
    send_to_queue,
)
from cos_events.broadcast.contract import BrokerWire, Copy

__all__ = ["Broadcaster", "BrokerWire", "Copy", "make_broadcaster", "make_wire", "send_to_queue"]
