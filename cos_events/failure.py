"""What follows a failed attempt: noted, then a copy for its retry, or a dead letter."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from celery.app.task import Task
from celery.exceptions import Reject

from cos_events import dead_letters, gate, telemetry
from cos_events.broadcast.message import headers_of
from cos_events.envelope import Envelope
from cos_events.error_frames import frames, innermost_frame
from cos_events.error_text import describe, one_line
from cos_events.retry import Dead, RetryAfter
from cos_events.settings import get_settings
from cos_events.store import deliveries, locks
from cos_events.store.engine import get_engine, wait_at_most
from cos_events.store.models import DeliveryState
from cos_events.subscribers import Subscriber
from cos_events.telemetry import names

logger = logging.getLogger(__name__)

LONGEST_ON_BROKER = 60.0
"""Seconds. A retry that is due later waits in PostgreSQL: a broker should not fill up with the
retries of a long outage, and on Redis a worker would have to keep them in its memory."""

LEDGER_AWAY_DELAY = 5.0
"""Seconds until the next try when a failure cannot be noted; that try is not counted."""


def fail(  # noqa: PLR0913 - the whole of an attempt
    task: Task[Any, Any],
    subscriber: Subscriber,
    raw: str,
    retries: int,
    error: Exception,
    *,
    deaths: int | None = 0,
) -> RetryAfter | Dead | None:
    """Note that an attempt at one envelope failed; send a copy for its retry, or bury it.

    Args:
        task: the subscription's Celery task.
        subscriber: the subscription.
        raw: the envelope, which can be decoded.
        retries: how many retries there were before this attempt.
        error: what went wrong.
        deaths: how many processes in a row died from it; None to count one more.

    Returns:
        When it runs again, or why it does not; None if another copy has already ended.

    Raises:
        Reject: the broker did not take the copy.
    """
    envelope = Envelope.decode(raw)
    telemetry.in_hand(raw).fail(error)
    try:
        if deaths is None:
            deaths = gate.count_death(subscriber, envelope)
        outcome = subscriber.retry_policy.decide(error, retries, deaths)
        first_failed_at = _note(subscriber, envelope, outcome, retries + 1, error, deaths=deaths)
    except Exception as away:  # noqa: BLE001 - without its note, the attempt did not happen
        return wait_for_ledger(task, [raw], away, retries)
    event_id, text = envelope.base_log_id, one_line(describe(error))
    if first_failed_at is None:
        logger.warning(
            "%s: event %s failed, but is already delivered or dead, by another copy or by a "
            "commit that bypassed the session: %s%s",
            *(subscriber.name, event_id, text, innermost_frame(error)),
        )
        return None
    if isinstance(outcome, RetryAfter):
        logger.warning(
            "%s: event %s failed, attempt %d, the next in %.0f s: %s%s",
            *(subscriber.name, event_id, retries + 1, outcome.seconds, text),
            innermost_frame(error),
        )
        telemetry.count(names.RETRIED, envelope.source_module, subscriber.name)
        if outcome.seconds <= LONGEST_ON_BROKER:
            _send_again(task, raw, outcome.seconds, retries + 1)
        return outcome
    logger.error(
        "%s: event %s is a dead letter after %d attempt%s: %s: %s%s",
        *(subscriber.name, event_id, retries + 1, "s" if retries else "", outcome.reason, text),
        frames(error),
    )
    dead_letters.bury(
        task.app,
        subscriber.name,
        raw,
        reason=outcome.reason,
        error=error,
        attempts=retries + 1,
        first_failed_at=first_failed_at,
    )
    telemetry.count(names.DEAD, envelope.source_module, subscriber.name)
    gate.ended(subscriber, [envelope])
    return outcome


def wait_for_ledger(
    task: Task[Any, Any], raws: Iterable[str], away: Exception, retries: int
) -> RetryAfter:
    """PostgreSQL is or was down: copies of these come later, as if nothing had been tried.

    Raises:
        Reject: the broker did not take the copies.
    """
    logger.warning(
        "%s: PostgreSQL failed, its events will be delivered again: %s", task.name, one_line(away)
    )
    for raw in raws:
        telemetry.in_hand(raw).fail(away)
        _send_again(task, raw, LEDGER_AWAY_DELAY, retries)
    return RetryAfter(LEDGER_AWAY_DELAY)


def _note(  # noqa: PLR0913 - the columns of the row
    subscriber: Subscriber,
    envelope: Envelope,
    outcome: RetryAfter | Dead,
    attempts: int,
    error: Exception,
    *,
    deaths: int,
) -> datetime | None:
    state: DeliveryState = "dead"
    text, wait = describe(error), None
    if isinstance(outcome, Dead):
        text = f"{outcome.reason}: {text}"
    else:
        state = "retrying" if outcome.seconds <= LONGEST_ON_BROKER else "held"
        wait = timedelta(seconds=outcome.seconds)
    with get_engine().begin() as connection:
        wait_at_most(connection, locks.COPY_TIMEOUT_MS)
        return deliveries.note_failure(
            connection,
            subscriber.name,
            envelope.base_log_id,
            state=state,
            attempts=attempts,
            error=text,
            wait=wait,
            deaths=deaths,
        )


def _send_again(task: Task[Any, Any], raw: str, seconds: float, retries: int) -> None:
    apply: Callable[..., Any] = task.apply_async
    wait, its = {names.RETRY_AFTER: seconds}, telemetry.in_hand(raw).traceparent
    try:
        with telemetry.span(names.RETRY, task.name, wait, its) as span:
            apply(
                args=([raw],),
                retries=retries,
                # RabbitMQ has whole seconds only, and a copy that came early would be skipped.
                countdown=math.ceil(seconds),
                queue=task.name,
                serializer="json",
                headers=headers_of(span.traceparent),
                argsrepr="(<1 event>,)",
                kwargsrepr="{}",
                retry=False,
                confirm_timeout=get_settings().wire_timeout,
            )
    except Exception as error:
        raise Reject(error, requeue=True) from error
