"""Every lock that the bus takes in PostgreSQL: advisory, and held until the transaction ends.

A transaction that takes two takes a subscription's before the one on holding, and so does one that
waits for another connection's: the feeder has the first while it decides on the second elsewhere.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Function, func, select

_HOLDING = "cos_events.holding"


def upgrade(connection: Connection) -> None:
    """Migrate alone: two upgrades at once would both find the tables missing."""
    _lock(connection, "cos_events.upgrade")


def subscription(connection: Connection, name: str, *, wait: bool = True) -> bool:
    """Have a subscription's watermark, and what is fed to it, to oneself.

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
    """An expression that lets no subscription begin or end to hold.

    Each publishing transaction shares this lock, so that no publisher relies on a queue that
    another one has just unbound, and none is missed when a queue is bound again.
    """
    return func.pg_advisory_xact_lock_shared(func.hashtext(_HOLDING))


def decide_holding(connection: Connection) -> None:
    """Wait for every publishing transaction, and keep new ones waiting."""
    _lock(connection, _HOLDING)


def _lock(connection: Connection, *names: str, wait: bool = True) -> bool:
    key = [func.hashtext(each) for each in names]
    if wait:
        connection.execute(select(func.pg_advisory_xact_lock(*key)))
        return True
    return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(*key))))
