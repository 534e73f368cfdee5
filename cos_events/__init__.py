"""cos-events: if the transaction committed, every subscription runs.

Recording: `record_event`, `log_l1` · receiving: `subscriber`, `BaseSubscriber`, `Envelope`,
`Rejected` · joining a Celery application: `install` · errors: `CosEventsError` and its kinds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cos_events.app import install
    from cos_events.envelope import Envelope
    from cos_events.errors import CosEventsError, InvalidEnvelope, InvalidPayload, Rejected
    from cos_events.l1 import log_l1
    from cos_events.recording import record_event
    from cos_events.subscribers import BaseSubscriber, subscriber

__all__ = [
    "BaseSubscriber",
    "CosEventsError",
    "Envelope",
    "InvalidEnvelope",
    "InvalidPayload",
    "Rejected",
    "install",
    "log_l1",
    "record_event",
    "subscriber",
]

_MODULES = {
    "install": "app",
    "Envelope": "envelope",
    "log_l1": "l1",
    "record_event": "recording",
    "BaseSubscriber": "subscribers",
    "subscriber": "subscribers",
}


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: Celery and SQLAlchemy take a second, and `cos-events --help`,
    # or the completion of a command line, needs neither.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
