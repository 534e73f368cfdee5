"""Puts on `<subscription>.dlq` what no retry can deliver."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from celery import Celery
from celery.exceptions import Reject

from cos_events import broker, telemetry
from cos_events.broadcast.message import bytes_of, headers_of
from cos_events.envelope import format_timestamp
from cos_events.error_text import MAX_LENGTH, describe, one_line
from cos_events.settings import get_settings
from cos_events.telemetry import names
from cos_events.topology import dead_letter_queue

logger = logging.getLogger(__name__)


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

    The ledger already says `dead`, so nothing is lost if the broker is down: `replay` takes the
    envelope from the outbox.
    """
    headers = {
        "error_type": type(error).__name__,
        "error": describe(error),
        "attempts": attempts,
        "first_failed_at": format_timestamp(first_failed_at),
    }
    try:
        _publish(app, subscription, raw, reason, headers)
    except Exception as away:  # noqa: BLE001 - any error of any broker
        logger.warning(
            "%s: a dead letter is in the ledger, but not on its queue: %s",
            *(subscription, one_line(away)),
        )


def bury_unusable(app: Celery, subscription: str, raw: str, reason: str) -> None:
    """Put bytes that are not an envelope of ours on the dead-letter queue, with the reason.

    Raises:
        Reject: the broker did not take them; it keeps the original message.
    """
    logger.error("%s: a message goes to the dead letters: %s", subscription, reason)
    telemetry.in_hand(raw).fail("unusable")
    try:
        _publish(app, subscription, raw, reason, {"attempts": 0})
    except Exception as away:
        raise Reject(away, requeue=True) from away
    telemetry.count(names.UNUSABLE, subscription)


def _publish(
    app: Celery, subscription: str, raw: str, reason: str, headers: dict[str, Any]
) -> None:
    queue = dead_letter_queue(subscription, rabbitmq=broker.on_rabbitmq())
    why, its = {names.REASON: reason}, telemetry.in_hand(raw).traceparent
    with (
        telemetry.span(names.DEAD_LETTER, subscription, why, its) as span,
        app.producer_pool.acquire(block=True, timeout=5) as producer,
    ):
        producer.publish(
            bytes_of(raw),
            exchange="",
            routing_key=queue.name,
            declare=[queue],
            content_type="application/octet-stream",
            content_encoding="binary",
            headers={
                "subscription": subscription,
                "reason": reason[:MAX_LENGTH],
                "died_at": format_timestamp(datetime.now(UTC)),
                **headers_of(span.traceparent),
                **headers,
            },
            retry=False,
            confirm_timeout=get_settings().wire_timeout,
        )
