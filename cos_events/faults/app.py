"""The Celery application of a fault run: three subscriptions whose effects can be counted."""

from __future__ import annotations

from typing import Any

from celery import Celery
from sqlalchemy.orm import Session

from cos_events import Envelope, install, subscriber
from cos_events.faults.truth import fail_at_first, note_effect
from cos_events.settings import get_settings
from cos_events.store.engine import get_engine
from cos_events.topology import is_rabbitmq

_RETRIES: dict[str, Any] = {
    "retry_backoff": False,
    "default_retry_delay": 1,
    # Workers die of faults here, never of a message.
    "max_retries": None,
    "max_deaths": 1_000,
}

app = install(Celery("faults", broker=get_settings().broker_url))
app.conf.task_ignore_result = True
if not is_rabbitmq(get_settings().broker_url):
    # What a killed worker held comes back while the run can see it.
    app.conf.broker_transport_options = {
        "visibility_timeout": 5,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }


@subscriber("exactly_once", **_RETRIES)
def exactly_once(message: Envelope, session: Session) -> None:
    """One row an event, in the delivery's own transaction."""
    fail_at_first("exactly_once", message)
    note_effect(session, "exactly_once", [message])


@subscriber("in_batches", batch_size=20, batch_timeout=0.2, **_RETRIES)
def in_batches(messages: list[Envelope], session: Session) -> None:
    """As `exactly_once`, twenty at a time."""
    for message in messages:
        fail_at_first("in_batches", message)
    note_effect(session, "in_batches", messages)


@subscriber("at_least_once", **_RETRIES)
def at_least_once(message: Envelope) -> None:
    """One row each time it runs, in a transaction of its own."""
    fail_at_first("at_least_once", message)
    with get_engine().begin() as connection:
        note_effect(connection, "at_least_once", [message])
