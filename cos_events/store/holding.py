"""The lock under which it is decided which subscriptions hold.

Each publishing transaction shares it, so that no publisher relies on a queue that another one has
just unbound, and none is missed when a queue is bound again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Function, func, select

_KEY = func.hashtext("cos_events.holding")


def share_holding() -> Function[Any]:
    """An expression that lets no subscription begin or end to hold before the transaction ends."""
    return func.pg_advisory_xact_lock_shared(_KEY)


def decide_holding(connection: Connection) -> None:
    """Wait for every publishing transaction, and keep new ones waiting until this one ends."""
    connection.execute(select(func.pg_advisory_xact_lock(_KEY)))
