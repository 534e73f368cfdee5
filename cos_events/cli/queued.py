"""What still waits in a subscription's queue."""

from __future__ import annotations


def queued(subscription: str) -> int | None:
    """How many messages: they are late, not missing; None while the broker does not answer."""
    from cos_events import broker
    from cos_events.errors import BrokerAway

    try:
        return broker.queue_depths([subscription]).get(subscription, 0)
    except BrokerAway:
        return None
