"""cos-events with one subscription, one event a call."""

from __future__ import annotations

from typing import Any

from celery import Celery
from sqlalchemy.orm import Session

from benchmarks.peers import work
from cos_events import Envelope, install, record_event, subscriber

app = install(
    Celery(
        "peers",
        broker=work.BROKER_URL,
        config_source={"task_ignore_result": True, "worker_prefetch_multiplier": 64},
    )
)


@subscriber("peers", modules="peers")
def handle(message: Envelope) -> None:
    work.handled(message.data)


def in_transaction(session: Session, event: dict[str, Any]) -> None:
    record_event(session, "order_placed", event, module="peers")
