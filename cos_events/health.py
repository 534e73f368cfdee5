"""Whether the bus makes progress: not whether something answers, but whether events move."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from cos_events.duration import rough_duration
from cos_events.store import ledger, migrations, subscriptions
from cos_events.store.engine import READ_ONLY, explained, get_watching_engine
from cos_events.store.redelivery import ids_at_once, oldest_without_delivery

STUCK_AFTER = 120.0
"""Seconds. Older unpublished events mean that no publisher is working; older undelivered ones, that
a subscription's workers are not."""


def problems() -> tuple[str, ...]:
    """What is wrong, as sentences that name no server. Empty if all is well.

    A paused subscription is not a problem: its condition says why it waits.

    Raises:
        DatabaseAway: nobody can say.
        SchemaMissing: the same.
    """
    with explained(), get_watching_engine().connect() as connection:
        return tuple(_problems(connection))


def _problems(connection: Connection) -> Iterator[str]:
    if connection.scalar(text("SHOW transaction_read_only")) == "on":
        yield f"PostgreSQL {READ_ONLY}"
    if migrations.is_behind(migrations.current(connection)):
        yield "the database has the tables of an older version: run `cos-events db upgrade`"
    backlog = ledger.backlog(connection)
    if backlog.oldest_seconds > STUCK_AFTER:
        yield (
            f"{backlog.rows:,} events wait to be published, the oldest for "
            f"{rough_duration(backlog.oldest_seconds)}: is a publisher running, is the broker up?"
        )
    if (cached := ids_at_once(connection)) > 1:
        yield (
            f"each connection takes {cached} outbox ids at once, so events that the broker loses "
            "may not be sent again: ALTER SEQUENCE cos_events.outbox_id_seq CACHE 1, and "
            "restart whatever records events"
        )
    for each in subscriptions.load(connection):
        lag = oldest_without_delivery(connection, each.name)
        if lag > STUCK_AFTER:
            yield (
                f"{each.name} has not received an event published {rough_duration(lag)} ago: "
                "are its workers running, and keeping up?"
            )
