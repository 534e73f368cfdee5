"""One delivery, from the envelope's bytes to its outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from celery.exceptions import Reject, Retry

from cos_events import dead_letters
from cos_events.attempt import LedgerAway, attempt
from cos_events.envelope import Envelope
from cos_events.errors import InvalidEnvelope
from cos_events.retry import Dead, RetryAfter
from cos_events.settings import get_settings
from cos_events.store import deliveries
from cos_events.store.engine import get_engine, wait_at_most

if TYPE_CHECKING:
    from celery.app.task import Task

    from cos_events.subscribers import Subscriber

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_MS = 2_000
"""Milliseconds that a failure's note waits for another copy of the event that runs right now."""

LEDGER_AWAY_DELAY = 5.0
"""Seconds until the next try when a failure cannot be noted; that try counts as no attempt."""


def deliver(task: Task[Any, Any], subscriber: Subscriber, raws: Sequence[str]) -> None:
    """Run a subscription's handler for these envelopes, and see each to its outcome.

    Afterwards each one is delivered, waiting for its retry, or a dead letter; the Celery task ends
    as a success if all went well or several were handled, and as a retry if its only one failed.

    Args:
        task: the subscription's Celery task, bound to the request in hand.
        subscriber: the subscription and its handler.
        raws: the envelopes as they travelled; undecodable bytes as surrogate escapes.

    Raises:
        Retry: the only envelope failed and a copy of it waits for its time.
        Reject: the broker shall keep the message, since nothing could be said about it elsewhere.
    """
    envelopes: dict[str, Envelope] = {}
    unusable: dict[str, str] = {}
    for raw in raws:
        try:
            envelope = Envelope.decode(raw.encode("utf-8", "surrogateescape"))
        except (InvalidEnvelope, UnicodeEncodeError) as invalid:
            unusable[raw] = str(invalid)
        else:
            if subscriber.subscription.wants(envelope.source_module, envelope.event_type):
                envelopes[raw] = envelope
    retry: RetryAfter | None = None
    error: Exception | None = None
    if len(envelopes) < 2 or not _deliver_batch(task, subscriber, envelopes):
        for raw, envelope in envelopes.items():
            retry, error = _deliver_one(task, subscriber, raw, envelope)
    # Last, so that a dead-letter queue that cannot be written holds up no good event.
    for raw, reason in unusable.items():
        dead_letters.bury_unusable(task.app, subscriber.name, raw, reason)
    if retry and len(raws) == 1:
        when = datetime.now(UTC) + timedelta(seconds=retry.seconds)
        raise Retry(exc=error, when=when)


def _deliver_batch(
    task: Task[Any, Any], subscriber: Subscriber, envelopes: dict[str, Envelope]
) -> bool:
    """Try them in one call; False if its messages are to be tried singly."""
    try:
        strangers = attempt(subscriber, list(envelopes.values()), task.request.retries)
    except LedgerAway as away:
        _wait_for_ledger(task, envelopes, away)
    except Exception as error:  # noqa: BLE001 - whatever the handler raises
        reason = dead_letters.describe(error)
        logger.info("%s: a batch failed (%s); its messages are tried singly", task.name, reason)
        return False
    else:
        _bury_strangers(task, envelopes, strangers)
    return True


def _deliver_one(
    task: Task[Any, Any], subscriber: Subscriber, raw: str, envelope: Envelope
) -> tuple[RetryAfter | None, Exception | None]:
    try:
        strangers = attempt(subscriber, [envelope], task.request.retries)
    except LedgerAway as away:
        return _wait_for_ledger(task, [raw], away), away
    except Exception as error:  # noqa: BLE001 - whatever the handler raises
        return fail(task, subscriber, raw, task.request.retries, error), error
    _bury_strangers(task, {raw: envelope}, strangers)
    return None, None


def _wait_for_ledger(task: Task[Any, Any], raws: Iterable[str], away: Exception) -> RetryAfter:
    logger.warning("%s: PostgreSQL is away, its events wait: %s", task.name, away)
    for raw in raws:
        _send_again(task, raw, LEDGER_AWAY_DELAY, task.request.retries)
    return RetryAfter(LEDGER_AWAY_DELAY)


def fail(
    task: Task[Any, Any], subscriber: Subscriber, raw: str, retries: int, error: Exception
) -> RetryAfter | None:
    """Note that an attempt at one envelope failed; send a copy for its retry, or bury it.

    Args:
        task: the subscription's Celery task.
        subscriber: the subscription.
        raw: the envelope, which can be decoded.
        retries: how many retries there were before this attempt.
        error: what went wrong.

    Returns:
        When the copy runs; None if there is none.

    Raises:
        Reject: the broker did not take the copy.
    """
    event_id = Envelope.decode(raw).base_log_id
    outcome = subscriber.retry_policy.decide(error, retries)
    try:
        first_failed_at = _note(subscriber.name, event_id, outcome, retries + 1, error)
    except Exception as away:  # noqa: BLE001 - without its note, the attempt did not happen
        logger.warning("%s: a failure could not be noted, its event waits: %s", task.name, away)
        _send_again(task, raw, LEDGER_AWAY_DELAY, retries)
        return RetryAfter(LEDGER_AWAY_DELAY)
    if first_failed_at is None:
        return None
    if isinstance(outcome, RetryAfter):
        _send_again(task, raw, outcome.seconds, retries + 1)
        return outcome
    dead_letters.bury(
        task.app,
        subscriber.name,
        raw,
        reason=outcome.reason,
        error=error,
        attempts=retries + 1,
        first_failed_at=first_failed_at,
    )
    return None


def _bury_strangers(
    task: Task[Any, Any], envelopes: dict[str, Envelope], strangers: set[UUID]
) -> None:
    for raw, envelope in envelopes.items():
        if envelope.base_log_id in strangers:
            reason = f"event {envelope.base_log_id} was never recorded in this database"
            dead_letters.bury_unusable(task.app, task.name, raw, reason)


def _note(
    name: str, event_id: UUID, outcome: RetryAfter | Dead, attempts: int, error: Exception
) -> datetime | None:
    text = dead_letters.describe(error)
    with get_engine().begin() as connection:
        wait_at_most(connection, LOCK_TIMEOUT_MS)
        return deliveries.note_failure(
            connection,
            name,
            event_id,
            state="dead" if isinstance(outcome, Dead) else "retrying",
            attempts=attempts,
            error=f"{outcome.reason}: {text}" if isinstance(outcome, Dead) else text,
            next_attempt_at=None
            if isinstance(outcome, Dead)
            else datetime.now(UTC) + timedelta(seconds=outcome.seconds),
        )


def _send_again(task: Task[Any, Any], raw: str, seconds: float, retries: int) -> None:
    try:
        apply: Callable[..., Any] = task.apply_async
        apply(
            args=([raw],),
            retries=retries,
            countdown=seconds,
            queue=task.name,
            serializer="json",
            argsrepr="(<1 event>,)",
            kwargsrepr="{}",
            retry=False,
            confirm_timeout=get_settings().wire_timeout,
        )
    except Exception as error:
        raise Reject(error, requeue=True) from error
