"""Dead letters run again, or never: what a person decides about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from cos_events.dead_letters import on_broker
from cos_events.dead_letters.finding import DeadLetter
from cos_events.envelope import Envelope
from cos_events.errors import SubscriptionError
from cos_events.recording import encode, make_envelope
from cos_events.store import dead_letters, subscriptions
from cos_events.store.dead_letters import Filter
from cos_events.store.engine import explained, get_engine

BATCH_SIZE = 1_000
"""Dead letters in one transaction."""

Progress = Callable[[int], object]
"""Told how many more are done."""


def count(which: Filter, limit: int | None = None) -> int:
    """How many of these dead letters there are, or `limit` if there are more.

    Raises:
        SubscriptionError: there is no such subscription.
    """
    with explained(), get_engine().connect() as connection:
        subscriptions.require(connection, which.subscription)
        found = dead_letters.count(connection, which)
    return found if limit is None else min(found, limit)


def replay(
    which: Filter, limit: int | None = None, on_done: Progress = lambda _: None
) -> list[UUID]:
    """Let dead letters run again, counting their attempts from zero.

    They are held until their queue has room: a publisher sends them, a second later or when the
    broker is back.

    Args:
        which: of one subscription, or of all.
        limit: the most of them, oldest first.
        on_done: progress.

    Returns:
        The events that will run again, oldest first.

    Raises:
        SubscriptionError: there is no such subscription.
    """
    return _in_batches(dead_letters.revive, which, limit, on_done)


def purge(
    which: Filter, limit: int | None = None, on_done: Progress = lambda _: None
) -> list[UUID]:
    """Drop dead letters for good; the ledger records them as discarded. Otherwise as `replay`."""
    return _in_batches(dead_letters.discard, which, limit, on_done)


def correct(letter: DeadLetter, data: Mapping[str, Any]) -> Envelope:
    """Let a dead letter go out with different content; the outbox keeps what was recorded.

    Args:
        letter: of one subscription, as it was found; others have the original.
        data: the new content of the envelope.

    Returns:
        The corrected envelope.

    Raises:
        SubscriptionError: it is no longer a dead letter, or has changed since.
        InvalidPayload: the content cannot be sent; names the field.
    """
    was = letter.envelope
    corrected = make_envelope(
        event_type=was.event_type,
        data=data,
        base_log_id=was.base_log_id,
        module=was.source_module,
        timestamp=was.timestamp,
        trace_id=was.trace_id,
        request_id=was.request_id,
    )
    with explained(), get_engine().begin() as connection:
        ours = letter.subscription, letter.event_id
        if not dead_letters.correct(connection, *ours, letter.died_at, encode(corrected)):
            raise SubscriptionError(
                "{}: {} is no longer a dead letter, or somebody else has corrected it: "
                "see `dlq show {}`".format(*ours, letter.event_id)
            )
    return corrected


def _in_batches(
    take: Callable[..., list[UUID]], which: Filter, limit: int | None, on_done: Progress
) -> list[UUID]:
    taken: list[UUID] = []
    while limit is None or len(taken) < limit:
        size = BATCH_SIZE if limit is None else min(BATCH_SIZE, limit - len(taken))
        with explained(), get_engine().begin() as connection:
            subscriptions.require(connection, which.subscription)
            batch = take(connection, which, size)
        taken += batch
        on_done(len(batch))
        if len(batch) < size:
            break
    if taken and which.subscription is not None:
        on_broker.take_off(which.subscription, set(taken))
    return taken
