"""Whether the bus makes progress: not whether something answers, but whether events move."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from cos_events import ledger
from cos_events.errors import DatabaseAway, SchemaMissing
from cos_events.store import subscriptions
from cos_events.store.engine import explained, get_engine
from cos_events.store.redelivery import oldest_without_delivery

STUCK_AFTER = 120.0
"""Seconds. Older unpublished events mean that no publisher works; older undelivered ones that a
subscription's workers do not."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the bus is.

    Attributes:
        outbox_rows: events that wait to be published.
        outbox_age: seconds that the oldest of them has waited.
        lags: by subscription, seconds since the oldest event was published that it has not had; 0
            if there is none.
        conditions: by subscription, as `status` shows it.
        problems: sentences; empty if all is well.
    """

    outbox_rows: int
    outbox_age: float
    lags: dict[str, float]
    conditions: dict[str, str]
    problems: tuple[str, ...]


def progress() -> Progress:
    """Look now.

    A paused subscription is no problem of the bus: its condition says why it waits.

    Raises:
        DatabaseAway: PostgreSQL cannot be reached.
        SchemaMissing: it has no cos-events tables.
    """
    with explained(), get_engine().connect() as connection:
        return _progress(connection)


def problems() -> tuple[str, ...]:
    """What is wrong, as sentences; a database that is away is one. Empty if all is well."""
    try:
        return progress().problems
    except (DatabaseAway, SchemaMissing) as error:
        return (str(error),)


def _progress(connection: Connection) -> Progress:
    backlog = ledger.backlog(connection)
    conditions = subscriptions.conditions(connection)
    lags = {name: oldest_without_delivery(connection, name) for name in conditions}
    problems = []
    if backlog.oldest_seconds > STUCK_AFTER:
        problems.append(
            f"{backlog.rows:,} events wait to be published, the oldest for "
            f"{backlog.oldest_seconds:.0f} s: is a publisher running, is the broker up?"
        )
    problems += [
        f"{name} has not had an event that was published {lag:.0f} s ago: are its workers running?"
        for name, lag in lags.items()
        if lag > STUCK_AFTER
    ]
    return Progress(backlog.rows, backlog.oldest_seconds, lags, conditions, tuple(problems))
