"""The Celery application under test: three subscriptions that only note the time."""

from __future__ import annotations

from celery import Celery
from sqlalchemy.orm import Session

from cos_events import Envelope, install, subscriber
from cos_events.cli.bench.events import number_of
from cos_events.cli.bench.worker import handled
from cos_events.settings import get_settings

BATCH, SINGLE, SESSION = SUBSCRIPTIONS = ("bench_batch", "bench_single", "bench_session")
"""Each also the source module of its events."""

app = install(
    Celery(
        "bench",
        broker=get_settings().broker_url,
        config_source={"task_ignore_result": True, "worker_prefetch_multiplier": 64},
    )
)


@subscriber(BATCH, modules=BATCH, batch_size=100, batch_timeout=0.02)
def batch(messages: list[Envelope]) -> None:
    """A hundred events a call."""
    marks = handled.get()
    for message in messages:
        marks.put(number_of(message.data))


@subscriber(SINGLE, modules=SINGLE)
def single(message: Envelope) -> None:
    """One event a call, at least once."""
    handled.get().put(number_of(message.data))


@subscriber(SESSION, modules=SESSION)
def in_session(message: Envelope, session: Session) -> None:  # noqa: ARG001 - its transaction counts
    """One event a call, exactly once."""
    handled.get().put(number_of(message.data))
