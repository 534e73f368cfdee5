"""A batch of committed envelopes, onto both wires: the Redis channel and the broker."""

from cos_events.broadcast.broadcaster import Broadcaster, make_broadcaster
from cos_events.broadcast.contract import BrokerWire
from cos_events.broadcast.direct import send_to_queue

__all__ = ["Broadcaster", "BrokerWire", "make_broadcaster", "send_to_queue"]
