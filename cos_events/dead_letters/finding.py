"""Which dead letters there are, from the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from cos_events.envelope import Envelope
from cos_events.errors import SubscriptionError
from cos_events.store import dead_letters, subscriptions
from cos_events.store.dead_letters import Filter, Place
from cos_events.store.engine import explained, get_engine

PAGE = 500
"""Dead letters that are read at a time."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that a subscription could not deliver, and why.

    Attributes:
        subscription: whose.
        event_id: the envelope's `base_log_id`.
        attempts: how often the handler ran for it.
        deaths: how many processes in a row died from it.
        error: what ended it: the reason, then the last error's type and text.
        first_failed_at: when its first attempt failed.
        died_at: when it was given up.
        envelope: as it was recorded.
        correction: the envelope that a person wants delivered instead.
    """

    subscription: str
    event_id: UUID
    attempts: int
    deaths: int
    error: str
    first_failed_at: datetime
    died_at: datetime
    envelope: Envelope
    correction: Envelope | None


def find(which: Filter, limit: int | None = None) -> Iterator[DeadLetter]:
    """These dead letters, oldest events first, read a page at a time.

    Raises:
        SubscriptionError: there is no such subscription.
    """
    after: Place | None = None
    left = limit
    while left is None or left > 0:
        with explained(), get_engine().connect() as connection:
            subscriptions.require(connection, which.subscription)
            size = PAGE if left is None else min(PAGE, left)
            page = dead_letters.find(connection, which, size, after)
        yield from map(_letter, page)
        if len(page) < size:
            return
        after = page[-1].outbox_id, page[-1].subscription
        left = None if left is None else left - size


def require(which: Filter) -> None:
    """Refuse named events that are not dead letters, whatever else is asked of them.

    Raises:
        SubscriptionError: names them; or there is no such subscription.
    """
    if not which.event_ids:
        return
    found = {each.event_id for each in find(Filter(which.subscription, which.event_ids))}
    if others := [str(each) for each in which.event_ids if each not in found]:
        raise SubscriptionError(
            f"{which.subscription} has no dead letter {', '.join(others)}: see `dlq list`"
        )


def _letter(row: Row[Any]) -> DeadLetter:
    return DeadLetter(
        row.subscription,
        row.event_id,
        row.attempts,
        row.deaths,
        row.error or "",
        row.created_at,
        row.updated_at,
        Envelope.decode(row.envelope),
        None if row.correction is None else Envelope.decode(row.correction),
    )
