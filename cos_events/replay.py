"""Runs history again for one subscription, because a person wants it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from psycopg2.errors import LockNotAvailable
from sqlalchemy.exc import OperationalError

from cos_events.selection import Selection
from cos_events.store import replays, subscriptions
from cos_events.store.engine import explained, get_engine, wait_at_most
from cos_events.store.locks import HANDLER_TIMEOUT_MS

BATCH_SIZE = 5_000
"""Events in one transaction."""

PATIENCE = 5.0
"""Seconds in which events that a handler is running are tried again, once the others are held."""


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
) -> tuple[int, int]:
    """Let these events run again for a subscription, oldest first.

    Each delivery begins a new generation. They are held until the subscription's queue has room.
    What is recorded meanwhile is not part of it.

    Args:
        subscription: whose history it is.
        selection: which of the events that it has been owed.
        on_done: told how many more are held.

    Returns:
        How many events it was; and how many more were left out, since a handler was running them.

    Raises:
        SubscriptionError: there is no such subscription.
    """
    with explained(), get_engine().connect() as connection:
        subscriptions.require(connection, subscription)
        _, through = replays.count(connection, subscription, selection)
    total = after = 0
    left: list[int] = []
    while page := _next_page(subscription, selection, after, through):
        after = page[-1]
        with explained():
            held, others = _hold(subscription, page)
        left += others
        total += held
        on_done(held)
    deadline = time.monotonic() + PATIENCE
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        with explained():
            held, left = _hold(subscription, left)
        total += held
        on_done(held)
    return total, len(left)


def _next_page(subscription: str, selection: Selection, after: int, through: int) -> Sequence[int]:
    with explained(), get_engine().connect() as connection:
        return replays.next_page(connection, subscription, selection, after, through, BATCH_SIZE)


def _hold(subscription: str, ids: Sequence[int]) -> tuple[int, list[int]]:
    """Hold these at once; if a handler holds the row of one, each half by itself, and so on.

    In separate transactions: otherwise live deliveries of the others would wait for that handler.

    Returns:
        How many there were; and the ids of those that a handler is running.
    """
    try:
        with get_engine().begin() as connection:
            wait_at_most(connection, HANDLER_TIMEOUT_MS)
            return replays.run_again(connection, subscription, ids), []
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
    if len(ids) == 1:
        return 0, list(ids)
    middle = len(ids) // 2
    first, second = (_hold(subscription, half) for half in (ids[:middle], ids[middle:]))
    return first[0] + second[0], first[1] + second[1]


def unfinished(subscription: str) -> int:
    """How many deliveries of a replay have not ended yet."""
    with explained(), get_engine().connect() as connection:
        return replays.unfinished(connection, subscription)
