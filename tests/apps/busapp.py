"""Another team's application on the bus; what its handlers did is in the table `effect`.

Its subscriptions' names begin with `BUSAPP_PREFIX`: queues of a shared RabbitMQ need their own.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from celery import Celery
from sqlalchemy import text
from sqlalchemy.orm import Session

from cos_events import Envelope, install, subscriber
from cos_events.settings import get_settings
from cos_events.store.engine import get_engine

PREFIX = os.environ["BUSAPP_PREFIX"]

app = install(Celery("busapp", broker=get_settings().broker_url))
app.conf.update(task_ignore_result=True, task_default_queue=f"{PREFIX}_celery")


def note(executor: Any, kind: str, *messages: Envelope) -> None:
    executor.execute(
        text("INSERT INTO effect VALUES (:kind, :event_id, :pid)"),
        [{"kind": kind, "event_id": m.base_log_id, "pid": os.getpid()} for m in messages],
    )


def noted(kind: str, message: Envelope) -> bool:
    """Whether this was noted before; if not, it is now."""
    before = text("SELECT count(*) FROM effect WHERE kind = :kind AND event_id = :event_id")
    with get_engine().begin() as connection:
        found = connection.scalar(before, {"kind": kind, "event_id": message.base_log_id})
        note(connection, kind, message)
    return bool(found)


@subscriber(f"{PREFIX}_plain")
def plain(message: Envelope) -> None:
    with get_engine().begin() as connection:
        note(connection, "plain", message)


@subscriber(f"{PREFIX}_session")
def with_session(message: Envelope, session: Session) -> None:
    note(session, "session", message)


@subscriber(f"{PREFIX}_coroutine")
async def coroutine(message: Envelope, session: Session) -> None:
    note(session, "coroutine", message)


@subscriber(f"{PREFIX}_flaky", event_types=["flaky"], retry_backoff=False, default_retry_delay=1)
def flaky(message: Envelope, session: Session) -> None:
    """Fails once for each event."""
    if not noted("flaky_attempt", message):
        raise ConnectionError("once")
    note(session, "flaky", message)


@subscriber(f"{PREFIX}_batch", batch_size=10, batch_timeout=0.1)
def batch(messages: list[Envelope], session: Session) -> None:
    note(session, "batch", *messages)


@subscriber(f"{PREFIX}_patient", event_types=["patient"], batch_size=10, batch_timeout=600)
def patient(messages: list[Envelope], session: Session) -> None:
    """Waits until ten have come."""
    note(session, "patient", *messages)


@subscriber(f"{PREFIX}_slow", event_types=["slow"])
def slow(message: Envelope, session: Session) -> None:
    """Hangs at its first attempt, until somebody kills it."""
    if not noted("slow_attempt", message):
        threading.Event().wait()
    note(session, "slow", message)


@subscriber(
    f"{PREFIX}_deadly",
    event_types=["deadly", "harmless"],
    batch_size=5,
    batch_timeout=0.5,
    max_retries=1,
    retry_jitter=False,
)
def deadly(messages: list[Envelope], session: Session) -> None:
    """Is killed by some of its messages, every time."""
    if any(message.event_type == "deadly" for message in messages):
        os.kill(os.getpid(), signal.SIGKILL)
    note(session, "deadly", *messages)


@subscriber(f"{PREFIX}_lethal", event_types=["lethal", "harmless"], max_deaths=2)
def lethal(message: Envelope, session: Session) -> None:
    """One kind of message ends the whole worker, every time."""
    if message.event_type == "lethal":
        os._exit(9)
    note(session, "lethal", message)


@subscriber(
    f"{PREFIX}_overtime",
    event_types=["overtime"],
    time_limit=1,
    retry_backoff=False,
    default_retry_delay=1,
)
def overtime(message: Envelope, session: Session) -> None:
    """Hangs at its first attempt, until its time limit ends it."""
    if not noted("overtime_attempt", message):
        threading.Event().wait()
    note(session, "overtime", message)
