"""A batch of committed envelopes, onto both wires: the Redis channel and the broker."""

from cos_events.broadcast.broadcaster import Broadcaster, make_broadcaster
from cos_events.broadcast.contract import BrokerWire

__all__ = ["Broadcaster", "BrokerWire", "make_broadcaster"]
