"""History runs again for one subscription, because a person wants it to."""

from __future__ import annotations

from collections.abc import Callable

from cos_events.selection import Selection
from cos_events.store import replays, subscriptions
from cos_events.store.engine import explained, get_engine

BATCH_SIZE = 5_000
"""Events in one transaction."""


def count(subscription: str, selection: Selection) -> int:
    """How many events would run again.

    Raises:
        SubscriptionError: there is no such subscription.
    """
    with explained(), get_engine().connect() as connection:
        subscriptions.require(connection, subscription)
        return replays.count(connection, subscription, selection)[0]


def run_again(
    subscription: str, selection: Selection, on_done: Callable[[int], object] = lambda _: None
) -> int:
    """Let these events run again for a subscription, oldest first.

    Each delivery begins a new generation. They are held until the subscription's queue has room.
    What is recorded meanwhile is not part of it.

    Args:
        subscription: whose history it is.
        selection: which of the events that it has been owed.
        on_done: told how many more are held.

    Returns:
        How many events it was.

    Raises:
        SubscriptionError: there is no such subscription.
    """
    with explained(), get_engine().connect() as connection:
        subscriptions.require(connection, subscription)
        _, through = replays.count(connection, subscription, selection)
    total = after = 0
    while True:
        with explained(), get_engine().begin() as connection:
            seen, after = replays.run_again(
                connection, subscription, selection, after, through, BATCH_SIZE
            )
        total += seen
        on_done(seen)
        if seen < BATCH_SIZE:
            return total


def unfinished(subscription: str) -> int:
    """How many deliveries of a replay have not ended yet."""
    with explained(), get_engine().connect() as connection:
        return replays.unfinished(connection, subscription)
