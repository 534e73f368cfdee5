"""The live feed: envelopes on Redis channels, for whoever is listening right now."""

from __future__ import annotations

from collections.abc import Sequence

from cos_events import telemetry
from cos_events.circuit_breaker import CircuitBreaker
from cos_events.pubsub.clients import make_client
from cos_events.settings import get_settings
from cos_events.store.outbox import Pending
from cos_events.telemetry import names
from cos_events.topology import channel_name


class ChannelWire:
    """Best effort: what Redis cannot take now, the channel misses; nobody waits for it."""

    def __init__(self) -> None:
        settings = get_settings()
        self._breaker = CircuitBreaker("the Redis channel", reset_after=5.0)
        self._client = make_client(
            patient=False,
            socket_connect_timeout=min(
                settings.wire_timeout, settings.redis_socket_connect_timeout
            ),
        )

    def send(self, batch: Sequence[Pending]) -> None:
        """Publish a batch in one round trip; what goes wrong is logged, and never raised."""
        try:
            with self._breaker, self._client.pipeline(transaction=False) as pipeline:
                for pending in batch:
                    pipeline.publish(channel_name(pending.source_module), pending.envelope)
                pipeline.execute()
        except Exception:  # noqa: BLE001 - the broker has the batch: to raise would send it again
            telemetry.count(names.CHANNEL_MISSED, by=len(batch))

    def close(self) -> None:
        """Release the connection."""
        self._client.close()
