"""The Celery application under test: three subscriptions that only note the time.

Beside them, what people write by hand: a task that publishes and enqueues the handler.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery, shared_task, signals
from sqlalchemy.orm import Session

from cos_events import Envelope, install, subscriber
from cos_events.cli.bench.events import number_of
from cos_events.cli.bench.marks import Marks
from cos_events.process import PerProcess
from cos_events.pubsub import get_redis_client_sync
from cos_events.settings import get_settings

FOLDER = "COS_EVENTS_BENCH_FOLDER"
"""The environment variable that names the folder with the marks."""

HANDLED = "handled"
"""The file of the times at which handlers were called."""

app = install(
    Celery(
        "bench",
        broker=get_settings().broker_url,
        config_source={"task_ignore_result": True, "worker_prefetch_multiplier": 64},
    )
)


@signals.worker_ready.connect
def _say(**_: object) -> None:
    # As Celery does, but at any log level: what it logs of each task costs time.
    print("worker ready.", flush=True)


_handled = PerProcess(lambda: Marks(Path(os.environ[FOLDER]) / HANDLED))


@subscriber("bench_batch", modules="bench_batch", batch_size=100, batch_timeout=0.02)
def batch(messages: list[Envelope]) -> None:
    """A hundred events a call."""
    marks = _handled.get()
    for message in messages:
        marks.put(number_of(message.data))


@subscriber("bench_single", modules="bench_single")
def single(message: Envelope) -> None:
    """One event a call, at least once."""
    _handled.get().put(number_of(message.data))


@subscriber("bench_session", modules="bench_session")
def in_session(message: Envelope, session: Session) -> None:  # noqa: ARG001 - its transaction counts
    """One event a call, exactly once."""
    _handled.get().put(number_of(message.data))


SUBSCRIPTIONS = ("bench_batch", "bench_single", "bench_session")


@shared_task(name="bench.by_hand.publish")
def publish_by_hand(envelope: dict[str, Any]) -> None:
    """As people write it: told by `delay` in their own hook."""
    get_redis_client_sync().publish("bench.by_hand", str(envelope))
    handle_by_hand.delay(envelope)


@shared_task(name="bench.by_hand.handle", acks_late=True)
def handle_by_hand(envelope: dict[str, Any]) -> None:
    """As people write it: the handler, enqueued a second time."""
    _handled.get().put(number_of(envelope["data"]))
