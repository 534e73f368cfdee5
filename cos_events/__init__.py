"""cos-events: if the transaction committed, every subscription runs.

Recording: `record_event`, `log_l1` · receiving: `subscriber`, `BaseSubscriber`, `Envelope`,
`Rejected` · the live feed: `publish_message`, `subscribe_to_channel`, `get_redis_client` · joining
a Celery application: `install` · errors: `CosEventsError` and its kinds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cos_events.app import install
    from cos_events.declaration import BaseSubscriber, subscriber
    from cos_events.envelope import Envelope
    from cos_events.errors import CosEventsError, InvalidEnvelope, InvalidPayload, Rejected
    from cos_events.l1 import log_l1
    from cos_events.pubsub import get_redis_client, publish_message, subscribe_to_channel
    from cos_events.recording import record_event

__all__ = [
    "BaseSubscriber",
    "CosEventsError",
    "Envelope",
    "InvalidEnvelope",
    "InvalidPayload",
    "Rejected",
    "get_redis_client",
    "install",
    "log_l1",
    "publish_message",
    "record_event",
    "subscribe_to_channel",
    "subscriber",
]

_MODULES = {
    "install": "app",
    "Envelope": "envelope",
    "log_l1": "l1",
    "get_redis_client": "pubsub",
    "publish_message": "pubsub",
    "subscribe_to_channel": "pubsub",
    "record_event": "recording",
    "BaseSubscriber": "declaration",
    "subscriber": "declaration",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: Celery and SQLAlchemy take a second, and neither `cos-events --help`
    # nor shell completion needs them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
