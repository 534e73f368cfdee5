"""Every lock that the bus takes in PostgreSQL: advisory, and held until the transaction ends.

A transaction that takes two takes a subscription's before the one on holding, and both before it
writes a subscription's row; so does one that waits for another connection's: the feeder holds the
first while it decides under the second on another connection.

Whoever holds one of them, or a row that others wait for, waits for a handler's row for a bounded
time only: a handler may run forever. If a process stops meanwhile, PostgreSQL ends its transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from sqlalchemy import Connection, Function, func, literal_column, select, text
from sqlalchemy.exc import OperationalError

from cos_events.store.engine import wait_at_most

HANDLER_TIMEOUT_MS = 50
"""Milliseconds that a sweep, or a publisher, waits for a handler that holds an event's row."""

COPY_TIMEOUT_MS = 2_000
"""Milliseconds that a worker that notes something, or decides about an order, waits for another
copy of the event that is running, or for another decision."""

LET_GO_AFTER = 60
"""Seconds after which PostgreSQL ends the transaction of a process that has stopped within it: its
locks would otherwise stay."""

LET_GO = func.set_config(
    "idle_in_transaction_session_timeout", f"{LET_GO_AFTER}s", literal_column("true")
)
"""An expression that has PostgreSQL do so in this transaction."""

Written = TypeVar("Written")

_HOLDING = "cos_events.holding"


def upgrade(connection: Connection) -> None:
    """Migrate alone: two upgrades at once would both find the tables missing."""
    _lock(connection, "cos_events.upgrade")


def subscription(connection: Connection, name: str, *, wait: bool = True) -> bool:
    """Have exclusive access to a subscription's watermark, and to what is fed to it.

    Args:
        connection: in a transaction.
        name: of the subscription.
        wait: for another who has it; otherwise return False.
    """
    return _lock(connection, "cos_events.relay", name, wait=wait)


def order(connection: Connection, name: str) -> None:
    """Decide about a subscription's order alone."""
    _lock(connection, "cos_events.order", name)


def retention(connection: Connection, *, wait: bool = True) -> bool:
    """Let nobody else drop events.

    Args:
        connection: in a transaction.
        wait: for another who has it; otherwise return False.
    """
    return _lock(connection, "cos_events.retention", wait=wait)


def share_holding() -> Function[Any]:
    """An expression that lets no subscription start or stop holding.

    Each publishing transaction shares this lock, so that no publisher relies on a queue that
    another one has just unbound, and none is missed when a queue is bound again.
    """
    return func.pg_advisory_xact_lock_shared(func.hashtext(_HOLDING))


def decide_holding(connection: Connection) -> None:
    """Wait for every publishing transaction, and keep new ones waiting."""
    _lock(connection, _HOLDING)


def write_past_handlers(
    connection: Connection, ids: Sequence[int], write: Callable[[Sequence[int]], Written]
) -> list[Written]:
    """Write something about these events at once; if a handler holds one's row, about the others.

    Args:
        connection: in a transaction.
        ids: of the outbox.
        write: is called with some of them.

    Returns:
        What the calls returned that could write.
    """
    written = []
    for some in (ids, *([each] for each in ids)):
        with suppress(OperationalError), in_bounded_time(connection):
            written.append(write(some))
            if some is ids:
                break
    return written


@contextmanager
def in_bounded_time(connection: Connection) -> Iterator[None]:
    """A SAVEPOINT within which nothing waits for a handler's row for long.

    Raises:
        OperationalError: a handler holds it; nothing of this was written.
    """
    with connection.begin_nested():
        wait_at_most(connection, HANDLER_TIMEOUT_MS)
        yield
        connection.execute(text("SET LOCAL lock_timeout TO DEFAULT"))


def _lock(connection: Connection, *names: str, wait: bool = True) -> bool:
    key = [func.hashtext(each) for each in names]
    if wait:
        connection.execute(select(func.pg_advisory_xact_lock(*key), LET_GO))
        return True
    return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(*key), LET_GO)))
