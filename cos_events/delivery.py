"""One delivery, from the envelope's bytes to its outcome."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from celery.exceptions import Reject, Retry
from sqlalchemy.orm import Session

from cos_events import dead_letters
from cos_events.envelope import Envelope
from cos_events.errors import InvalidEnvelope, Unsuccessful
from cos_events.process import PerThread
from cos_events.retry import Dead, RetryAfter
from cos_events.store import deliveries
from cos_events.store.engine import get_engine

if TYPE_CHECKING:
    from celery.app.task import Task

    from cos_events.subscribers import Subscriber

logger = logging.getLogger(__name__)

LEDGER_AWAY_DELAY = 5.0
"""Seconds until the next try when a failure cannot be noted; that try counts as no attempt."""

_loop = PerThread(asyncio.Runner)


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
    for raw in raws:
        try:
            envelope = Envelope.decode(raw.encode("utf-8", "surrogateescape"))
        except (InvalidEnvelope, UnicodeEncodeError) as error:
            dead_letters.bury_unusable(task.app, subscriber.name, raw, str(error))
        else:
            if subscriber.subscription.wants(envelope.source_module, envelope.event_type):
                envelopes[raw] = envelope
    if len(envelopes) > 1:
        try:
            strangers = _attempt(subscriber, list(envelopes.values()), task.request.retries)
        except Exception as error:  # noqa: BLE001 - whatever the handler raises
            logger.info("%s: a batch failed (%r); its messages are tried singly", task.name, error)
        else:
            _bury_strangers(task, envelopes, strangers)
            return
    for raw, envelope in envelopes.items():
        _deliver_one(task, subscriber, raw, envelope, alone=len(raws) == 1)


def _deliver_one(
    task: Task[Any, Any], subscriber: Subscriber, raw: str, envelope: Envelope, *, alone: bool
) -> None:
    retries = task.request.retries
    try:
        strangers = _attempt(subscriber, [envelope], retries)
    except Exception as error:
        retry = fail(task, subscriber, raw, retries, error)
        if retry and alone:
            when = datetime.now(UTC) + timedelta(seconds=retry.seconds)
            raise Retry(exc=error, when=when) from error
    else:
        _bury_strangers(task, {raw: envelope}, strangers)


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


def _attempt(subscriber: Subscriber, envelopes: list[Envelope], retries: int) -> set[UUID]:
    """Call the handler for those of the envelopes that the subscription has not had.

    Returns:
        The ids among them that were never recorded in this database.

    Raises:
        Exception: whatever the handler raised; then nothing of it is delivered.
    """
    ids = {envelope.base_log_id for envelope in envelopes}
    if subscriber.wants_session:
        with Session(get_engine()) as session, session.begin():
            fresh = deliveries.settle(session, subscriber.name, ids, retries + 1)
            _call(subscriber, [e for e in envelopes if e.base_log_id in fresh], session=session)
            had = deliveries.states(session, subscriber.name, ids - fresh) if fresh < ids else {}
        return ids - fresh - had.keys()
    with get_engine().connect() as connection:
        states = deliveries.states(connection, subscriber.name, ids)
    due = [e for e in envelopes if states.get(e.base_log_id, "unknown") in (None, "retrying")]
    if due:
        _call(subscriber, due)
        with get_engine().begin() as connection:
            due_ids = {envelope.base_log_id for envelope in due}
            deliveries.settle(connection, subscriber.name, due_ids, retries + 1)
    return ids - states.keys()


def _call(subscriber: Subscriber, envelopes: list[Envelope], **session: Session) -> None:
    if not envelopes:
        return
    try:
        result = subscriber.handle(
            envelopes if subscriber.batch_size > 1 else envelopes[0], **session
        )
        if inspect.isawaitable(result):
            result = _loop.get().run(_awaited(result))
    except SystemExit as error:
        raise Unsuccessful(f"{subscriber.name} called sys.exit()") from error
    except asyncio.CancelledError as error:
        raise Unsuccessful(f"{subscriber.name} was cancelled") from error
    if result is False:
        raise Unsuccessful(f"{subscriber.name} returned False")


async def _awaited(result: Any) -> Any:
    return await result


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
    text = f"{type(error).__name__}: {error}"[: dead_letters.MAX_ERROR_LENGTH]
    with get_engine().begin() as connection:
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
            argsrepr="(<1 event>,)",
            kwargsrepr="{}",
            retry=False,
        )
    except Exception as error:
        raise Reject(error, requeue=True) from error
