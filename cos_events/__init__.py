"""cos-events: if the transaction committed, every subscription runs.

Recording: `record_event`, `log_l1` · receiving: `subscriber`, `BaseSubscriber`, `Envelope`,
`Rejected` · joining a Celery application: `install` · errors: `CosEventsError`.
"""

from cos_events.app import install
from cos_events.envelope import Envelope
from cos_events.errors import CosEventsError, InvalidEnvelope, InvalidPayload, Rejected
from cos_events.l1 import log_l1
from cos_events.recording import record_event
from cos_events.subscriber import BaseSubscriber, subscriber

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
