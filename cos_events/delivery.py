"""One delivery, from the envelope's bytes to its outcome."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from celery.app.task import Task
from celery.exceptions import Retry, WorkerLostError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from cos_events import dead_letters, gate, telemetry
from cos_events.attempt import ConnectionLost, LedgerAway, attempt, call, due_of, settle
from cos_events.broadcast.message import bytes_of
from cos_events.envelope import Envelope
from cos_events.error_text import describe
from cos_events.errors import DeliveryFailed, InvalidEnvelope
from cos_events.failure import fail, wait_for_ledger
from cos_events.retry import Dead, RetryAfter
from cos_events.store.engine import get_handlers_engine, wait_for_disk
from cos_events.subscribers import Subscriber
from cos_events.task_message import REDELIVERED
from cos_events.telemetry import names

logger = logging.getLogger(__name__)


def deliver(task: Task[Any, Any], subscriber: Subscriber, raws: Sequence[str]) -> None:
    """Run a subscription's handler for these envelopes, and see each to its outcome.

    Afterwards each one is delivered, held, waiting for its retry, or a dead letter; the Celery task
    ends as a success if all went well or several were handled. For a single one that failed it ends
    as a retry, or as a failure once that is a dead letter.

    Args:
        task: the subscription's Celery task, bound to the current request.
        subscriber: the subscription and its handler.
        raws: the envelopes as received; undecodable bytes as surrogate escapes.

    Raises:
        Retry: the only envelope failed and a copy of it waits for its time.
        DeliveryFailed: the only envelope is a dead letter now.
        Reject: the broker is to keep the message, since nothing could be noted elsewhere.
    """
    envelopes: dict[str, Envelope] = {}
    unusable: list[tuple[str, str]] = []
    for raw in raws:
        try:
            envelope = Envelope.decode(bytes_of(raw))
        except InvalidEnvelope as invalid:
            unusable.append((raw, str(invalid)))
        else:
            if subscriber.subscription.wants(envelope.source_module, envelope.event_type):
                envelopes[raw] = envelope
    outcome = _Outcome()
    if len(envelopes) < 2:
        outcome = _deliver_singly(task, subscriber, envelopes)
    elif not _deliver_together(task, subscriber, envelopes):
        # As they came: the handler may have changed the content of those that it was given.
        as_they_came = {raw: Envelope.decode(bytes_of(raw)) for raw in envelopes}
        _deliver_singly(task, subscriber, as_they_came)
    # Last, so that a dead-letter queue that cannot be written holds up no good event.
    for raw, reason in unusable:
        dead_letters.bury_unusable(task.app, subscriber.name, raw, reason)
        outcome = _Outcome(Dead(reason))
    if len(raws) == 1:
        outcome.tell_celery()


def _deliver_together(
    task: Task[Any, Any], subscriber: Subscriber, envelopes: dict[str, Envelope]
) -> bool:
    """Several together, if that saves something; False if each is to run by itself."""
    if subscriber.batch_size > 1:
        return _deliver_batch(task, subscriber, envelopes)
    return not subscriber.wants_session and _deliver_in_turn(task, subscriber, envelopes)


def _deliver_in_turn(
    task: Task[Any, Any], subscriber: Subscriber, envelopes: dict[str, Envelope]
) -> bool:
    """A call for each; the rows are read together, and those of the successful written together."""
    retries, number = task.request.retries, {names.ATTEMPT_NUMBER: task.request.retries + 1}
    done: list[Envelope] = []
    failed: dict[str, Exception] = {}
    try:
        if not gate.may_call(subscriber, envelopes.values()):
            return True
        due, strangers = due_of(subscriber, envelopes.values(), retries)
        for raw, envelope in envelopes.items():
            if (chosen := due.pop(envelope.base_log_id, None)) is None:
                continue
            try:
                its = telemetry.in_hand(raw).traceparent
                with telemetry.span(names.ATTEMPT, task.name, number, its):
                    call(subscriber, [chosen])
            except Exception as error:  # noqa: BLE001 - whatever the handler raises
                failed[raw] = error
            else:
                done.append(chosen)
        settle(subscriber, done, retries)
        gate.called(subscriber)
    except LedgerAway as away:
        wait_for_ledger(task, envelopes, away, retries)
        return True
    for raw, failure in failed.items():
        fail(task, subscriber, raw, retries, failure)
    _bury_strangers(task, envelopes, strangers)
    return True


def _deliver_batch(
    task: Task[Any, Any], subscriber: Subscriber, envelopes: dict[str, Envelope]
) -> bool:
    """Try them in one call; False if its messages are to be tried one by one."""
    batch, retries = list(envelopes.values()), task.request.retries
    try:
        if not gate.may_call(subscriber, batch):
            return True
        try:
            with telemetry.span(names.ATTEMPT, task.name, {names.ATTEMPT_NUMBER: retries + 1}):
                _, strangers = attempt(subscriber, batch, retries)
        except subscriber.pause_on as error:
            gate.outage(subscriber, batch, error)
            return True
    except ConnectionLost as lost:
        logger.info(
            "%s: a batch lost PostgreSQL (%s); its messages are tried one by one to find the cause",
            task.name,
            lost,
        )
        return False
    except LedgerAway as away:
        wait_for_ledger(task, envelopes, away, retries)
        return True
    except Exception as error:  # noqa: BLE001 - whatever the handler raises
        reason = describe(error)
        logger.info("%s: a batch failed (%s); its messages are tried one by one", task.name, reason)
        return False
    gate.called(subscriber)
    gate.ended(subscriber, batch)
    _bury_strangers(task, envelopes, strangers)
    return True


class _Outcome(NamedTuple):
    """For one envelope: what follows its failure, and the failure; or that it is delivered."""

    follows: RetryAfter | Dead | None = None
    error: Exception | None = None
    delivered: bool = False

    def tell_celery(self) -> None:
        """End its task accordingly."""
        text = describe(self.error) if self.error else ""
        match self.follows:
            case RetryAfter(seconds):
                when = datetime.now(UTC) + timedelta(seconds=seconds)
                raise Retry(exc=DeliveryFailed(text), when=when)
            case Dead(reason):
                raise DeliveryFailed(": ".join(filter(None, ("a dead letter", reason, text))))


def _deliver_singly(
    task: Task[Any, Any], subscriber: Subscriber, envelopes: dict[str, Envelope]
) -> _Outcome:
    """Run each by itself, in its own transaction; several wait for the disk once, together.

    Returns:
        The last one's outcome.
    """
    engine = None
    if subscriber.wants_session and len(envelopes) > 1:
        # Without it each finds out for itself what is wrong.
        with suppress(SQLAlchemyError):
            engine = get_handlers_engine()
    outcome = _Outcome()
    unsure: dict[str, Envelope] = {}
    for raw, envelope in envelopes.items():
        outcome = _deliver_one(task, subscriber, raw, envelope, engine)
        if outcome.delivered:
            unsure[raw] = envelope
    if engine and unsure:
        _make_sure(task, subscriber, unsure)
    return outcome


def _make_sure(
    task: Task[Any, Any], subscriber: Subscriber, envelopes: dict[str, Envelope]
) -> None:
    """Wait until these are on disk; what is not known to be there comes again."""
    retries = task.request.retries
    try:
        wait_for_disk()
        due, _ = due_of(subscriber, envelopes.values(), retries)
    except Exception as away:  # noqa: BLE001 - nothing may be acknowledged without it
        wait_for_ledger(task, envelopes, away, retries)
        return
    if lost := [raw for raw, each in envelopes.items() if each.base_log_id in due]:
        crashed = LedgerAway("it crashed, and came back without its last commits")
        wait_for_ledger(task, lost, crashed, retries)


def _deliver_one(
    task: Task[Any, Any],
    subscriber: Subscriber,
    raw: str,
    envelope: Envelope,
    engine: Engine | None,
) -> _Outcome:
    retries = task.request.retries
    try:
        if not gate.may_call(subscriber, [envelope]):
            return _Outcome()
        deaths = gate.count_death(subscriber, envelope) if _is_redelivered(task) else 0
        if deaths >= subscriber.retry_policy.max_deaths:
            return _lost(task, subscriber, raw, "each worker that had this event was lost", deaths)
        try:
            number, its = {names.ATTEMPT_NUMBER: retries + 1}, telemetry.in_hand(raw).traceparent
            with telemetry.span(names.ATTEMPT, task.name, number, its):
                delivered, strangers = attempt(subscriber, [envelope], retries, engine)
        except subscriber.pause_on as error:
            gate.outage(subscriber, [envelope], error)
            return _Outcome()
    except LedgerAway as away:
        return _without_ledger(task, subscriber, raw, envelope, away)
    except Exception as error:  # noqa: BLE001 - whatever the handler raises
        gate.called(subscriber)
        return _Outcome(fail(task, subscriber, raw, retries, error), error)
    gate.called(subscriber)
    gate.ended(subscriber, [envelope])
    buried = _bury_strangers(task, {raw: envelope}, strangers)
    return _Outcome(buried, delivered=bool(delivered))


def _without_ledger(
    task: Task[Any, Any], subscriber: Subscriber, raw: str, envelope: Envelope, away: LedgerAway
) -> _Outcome:
    """It comes again, and no attempt is counted; but, as after a worker's death, not forever."""
    if isinstance(away, ConnectionLost):
        # PostgreSQL was restarted, or the handler breaks every connection that it gets.
        with suppress(LedgerAway):
            deaths = gate.count_death(subscriber, envelope)
            if deaths >= subscriber.retry_policy.max_deaths:
                return _lost(task, subscriber, raw, f"its connection was lost: {away}", deaths)
    return _Outcome(wait_for_ledger(task, [raw], away, task.request.retries), away)


def _lost(
    task: Task[Any, Any], subscriber: Subscriber, raw: str, why: str, deaths: int
) -> _Outcome:
    lost = WorkerLostError(why)
    return _Outcome(fail(task, subscriber, raw, task.request.retries, lost, deaths=deaths), lost)


def _is_redelivered(task: Task[Any, Any]) -> bool:
    """Whether a worker held an earlier copy, and may have died from it."""
    info = task.request.delivery_info or {}
    return bool(task.request.get(REDELIVERED) or info.get("redelivered"))


def _bury_strangers(
    task: Task[Any, Any], envelopes: dict[str, Envelope], strangers: set[UUID]
) -> Dead | None:
    """Make each a dead letter; returns what became of the last."""
    buried = None
    for raw, envelope in envelopes.items():
        if envelope.base_log_id in strangers:
            buried = Dead(f"event {envelope.base_log_id} was never recorded in this database")
            dead_letters.bury_unusable(task.app, task.name, raw, buried.reason)
    return buried
