"""What no retry can deliver: kept on `<subscription>.dlq`, and `dead` in the ledger."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from celery import Celery
from celery.exceptions import Reject
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from cos_events import broker
from cos_events.broadcast import Copy, send_to_queue
from cos_events.envelope import Envelope, format_timestamp
from cos_events.errors import BroadcastError, InvalidEnvelope, SubscriptionError
from cos_events.settings import get_settings
from cos_events.store import deliveries, subscriptions
from cos_events.store.engine import explained, get_engine
from cos_events.subscription import Subscription
from cos_events.topology import dead_letter_queue

logger = logging.getLogger(__name__)

MAX_ERROR_LENGTH = 2_000
"""The most characters of an error that are kept."""


def describe(error: BaseException) -> str:
    """An error's type and text, fit to be kept and shown.

    Of a database error only the SQLSTATE: its text quotes values. What PostgreSQL cannot store is
    escaped.
    """
    try:
        text = f"SQLSTATE {error.orig.pgcode}" if isinstance(error, DBAPIError) else str(error)  # type: ignore[union-attr]
    except Exception as unreadable:  # noqa: BLE001 - an exception of somebody else's
        text = f"its text cannot be read ({type(unreadable).__name__})"
    clean = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return f"{type(error).__name__}: {clean}"[:MAX_ERROR_LENGTH]


def bury(  # noqa: PLR0913 - what a person wants to know about a dead letter
    app: Celery,
    subscription: str,
    raw: str,
    *,
    reason: str,
    error: Exception,
    attempts: int,
    first_failed_at: datetime,
) -> None:
    """Put an envelope on the subscription's dead-letter queue, with what happened in its headers.

    The ledger has said `dead` already, so a broker that is away loses nothing: `replay` takes the
    envelope from the outbox.
    """
    headers = {
        "error_type": type(error).__name__,
        "error": describe(error),
        "attempts": attempts,
        "first_failed_at": format_timestamp(first_failed_at),
    }
    try:
        _publish(app, subscription, raw.encode(), reason, headers)
    except Exception as away:  # noqa: BLE001 - any error of any broker
        logger.warning(
            "%s: a dead letter is in the ledger, but not on its queue: %s", subscription, away
        )


def bury_unusable(app: Celery, subscription: str, raw: str, reason: str) -> None:
    """Put bytes that are no envelope of ours on the dead-letter queue, with the reason.

    Raises:
        Reject: the broker did not take them; it keeps the original message.
    """
    logger.error("%s: a message for the dead letters: %s", subscription, reason)
    try:
        _publish(app, subscription, broker.bytes_of(raw), reason, {"attempts": 0})
    except Exception as away:
        raise Reject(away, requeue=True) from away


def _publish(
    app: Celery, subscription: str, body: bytes, reason: str, headers: dict[str, Any]
) -> None:
    queue = dead_letter_queue(subscription, rabbitmq=broker.on_rabbitmq())
    with app.producer_pool.acquire(block=True, timeout=5) as producer:
        producer.publish(
            body,
            exchange="",
            routing_key=queue.name,
            declare=[queue],
            content_type="application/octet-stream",
            content_encoding="binary",
            headers={
                "subscription": subscription,
                "reason": reason[:MAX_ERROR_LENGTH],
                "died_at": format_timestamp(datetime.now(UTC)),
                **headers,
            },
            retry=False,
            confirm_timeout=get_settings().wire_timeout,
        )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that a subscription could not deliver, and why."""

    subscription: str
    event_id: UUID
    attempts: int
    error: str
    died_at: datetime
    envelope: Envelope

    def as_dict(self) -> dict[str, Any]:
        """A JSON-able object with everything."""
        return {
            **{name: getattr(self, name) for name in ("subscription", "attempts", "error")},
            "event_id": str(self.event_id),
            "died_at": format_timestamp(self.died_at),
            "envelope": self.envelope.model_dump(mode="json"),
        }


def find(subscription: str, limit: int) -> list[DeadLetter]:
    """A subscription's dead letters, oldest first.

    Raises:
        SubscriptionError: there is no such subscription.
    """
    with explained(), get_engine().connect() as connection:
        _known(connection, subscription)
        return [
            DeadLetter(
                subscription,
                row.event_id,
                row.attempts,
                row.error or "",
                row.updated_at,
                Envelope.decode(row.envelope),
            )
            for row in deliveries.dead(connection, subscription, limit)
        ]


def replay(subscription: str, limit: int, event_ids: Sequence[UUID] | None = None) -> list[UUID]:
    """Send dead letters to their subscription's queue again, with their attempts counted anew.

    Args:
        subscription: whose.
        limit: the most of them, oldest first.
        event_ids: only these; None for all.

    Returns:
        The events that will run again.

    Raises:
        SubscriptionError: there is no such subscription.
        BroadcastError: the broker did not take them; they are dead letters as before.
    """
    with explained(), get_engine().begin() as connection:
        known = _known(connection, subscription)
        letters = deliveries.dead(connection, subscription, limit, event_ids)
        revived = deliveries.revive(connection, subscription, [row.event_id for row in letters])
    # Committed first: a subscriber that still saw `dead` would drop the copy as a duplicate.
    try:
        copies = [Copy(row.envelope) for row in letters if row.event_id in revived]
        send_to_queue(known.name, copies)
    except BroadcastError:
        with get_engine().begin() as connection:
            deliveries.lay_back(
                connection, subscription, [row for row in letters if row.event_id in revived]
            )
        raise
    _discard(subscription, revived)
    return [row.event_id for row in letters if row.event_id in revived]


def _known(connection: Connection, name: str) -> Subscription:
    known = {each.name: each for each in subscriptions.load(connection)}
    if name not in known:
        raise SubscriptionError(
            f"there is no subscription {name!r}; there are: {', '.join(known) or 'none'}"
        )
    return known[name]


def _discard(subscription: str, event_ids: set[UUID]) -> None:
    """Take the copies of replayed events off the dead-letter queue."""
    queue = dead_letter_queue(subscription, rabbitmq=broker.on_rabbitmq())
    try:
        with broker.connect() as connection, connection.channel() as channel:
            bound = queue(channel)
            bound.declare()
            for message in iter(bound.get, None):
                try:
                    gone = Envelope.decode(broker.body_of(message)).base_log_id in event_ids
                except InvalidEnvelope:
                    gone = False
                if gone:
                    message.ack()
    except Exception as error:  # noqa: BLE001 - any error of any broker
        logger.warning("replayed events may still be on %s: %s", queue.name, error)
