"""History runs again for one subscription, because a person wants it to."""

from __future__ import annotations

from collections.abc import Callable

from cos_events.store import replays, subscriptions
from cos_events.store.engine import explained, get_engine
from cos_events.store.replays import History

BATCH_SIZE = 5_000
"""Events in one transaction."""


def count(history: History) -> int:
    """How many events would run again.

    Raises:
        SubscriptionError: there is no such subscription.
    """
    with explained(), get_engine().connect() as connection:
        subscriptions.require(connection, history.subscription)
        return replays.count(connection, history)[0]


def run_again(history: History, on_done: Callable[[int], object] = lambda _: None) -> int:
    """Let all of this history run again, oldest first; each delivery begins a new generation.

    They are held until the subscription's queue has room. What is recorded meanwhile is not part
    of it.

    Args:
        history: which.
        on_done: told how many more are held.

    Returns:
        How many events it was.

    Raises:
        SubscriptionError: there is no such subscription.
    """
    with explained(), get_engine().connect() as connection:
        subscriptions.require(connection, history.subscription)
        _, through = replays.count(connection, history)
    total = after = 0
    while True:
        with explained(), get_engine().begin() as connection:
            seen, after = replays.run_again(connection, history, after, through, BATCH_SIZE)
        total += seen
        on_done(seen)
        if seen < BATCH_SIZE:
            return total


def unfinished(subscription: str) -> int:
    """How many deliveries of a replay have not ended yet."""
    with explained(), get_engine().connect() as connection:
        return replays.unfinished(connection, subscription)
