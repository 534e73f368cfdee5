"""A batch of committed envelopes, onto both wires: the Redis channel and the broker."""

from cos_events.broadcast.broadcaster import Broadcaster, make_broadcaster, make_wire
from cos_events.broadcast.contract import BrokerWire, Copy
from cos_events.broadcast.direct import send_to_queue

__all__ = ["Broadcaster", "BrokerWire", "Copy", "make_broadcaster", "make_wire", "send_to_queue"]
