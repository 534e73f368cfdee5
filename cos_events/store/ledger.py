"""The accounts: for each subscription, what was committed against what it has received."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, String, and_, cast, func, or_, select, text
from sqlalchemy.dialects.postgresql import aggregate_order_by

from cos_events.selection import EVERYTHING, Selection
from cos_events.store import subscriptions
from cos_events.store.conditions import wanted
from cos_events.store.models import UNFINISHED, DeliveryRow, OutboxRow, SubscriptionRow

CHUNK = 20_000
"""Outbox ids that are looked at in one statement."""

COUNTS = "committed", "delivered", "held", "waiting", "in_flight", "dead", "discarded", "missing"
"""An account's counts, in its order."""


@dataclass(frozen=True, slots=True)
class Account:
    """One subscription's account. `committed` is the sum of the other seven counts.

    Attributes:
        subscription: its name.
        committed: events that it is owed.
        delivered: had their effect.
        held: wait in PostgreSQL: its queue is full, it is paused, or their turn has not come.
        waiting: in the outbox, not yet published; or history that a new one has yet to get.
        in_flight: published a moment ago, or waiting for a retry.
        dead: waiting for a person among the dead letters.
        discarded: purged by a person.
        missing: published longer ago than the grace time, and nobody knows what became of them.
        modules: the same counts by source module, and `digest`: the SHA-256 of the delivered
            events' ids, as text, in the order of recording, each with a line feed after it.
    """

    subscription: str
    committed: int = 0
    delivered: int = 0
    held: int = 0
    waiting: int = 0
    in_flight: int = 0
    dead: int = 0
    discarded: int = 0
    missing: int = 0
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)


def outbox_range(connection: Connection) -> tuple[int, int]:
    """The first and last outbox id that there are; 0 and 0 if there is none."""
    ids = func.min(OutboxRow.id), func.max(OutboxRow.id)
    first, last = connection.execute(select(*ids)).one()
    return first or 0, last or 0


def verify(
    connection: Connection,
    grace: float,
    subscription: str | None = None,
    selection: Selection = EVERYTHING,
    on_done: Callable[[int], object] = lambda _: None,
) -> list[Account]:
    """The account of every subscription, by name.

    Walks the outbox in ranges of ids, so that memory stays bounded however long it is.

    Args:
        connection: on the bus's database; in a REPEATABLE READ transaction all counts are as of one
            moment.
        grace: seconds that a published event may take.
        subscription: only its account.
        selection: only these events.
        on_done: told how many more ids were looked at.
    """
    books = {
        each.name: _Book()
        for each in subscriptions.load(connection)
        if subscription in (None, each.name)
    }
    first, last = outbox_range(connection)
    statement = _statement(list(books), selection)
    for start in range(first, last + 1, CHUNK):
        through = min(start + CHUNK - 1, last)
        rows = connection.execute(statement, {"grace": grace, "start": start, "through": through})
        for name, module, delivered_ids, *counts in rows:
            books[name].add(module, dict(zip(COUNTS, counts, strict=True)), delivered_ids)
        on_done(through - start + 1)
    return [book.account(name) for name, book in books.items()]


class _Book:
    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._digests: dict[str, Any] = {}

    def add(self, module: str, counts: dict[str, int], delivered_ids: str | None) -> None:
        self._counts.setdefault(module, Counter()).update(counts)
        digest = self._digests.setdefault(module, hashlib.sha256())
        if delivered_ids:
            digest.update(delivered_ids.encode() + b"\n")

    def account(self, name: str) -> Account:
        total: Counter[str] = sum(self._counts.values(), Counter())
        modules = {
            module: {
                **{count: counts[count] for count in COUNTS},
                "digest": self._digests[module].hexdigest(),
            }
            for module, counts in sorted(self._counts.items())
        }
        return Account(name, **{count: total[count] for count in COUNTS}, modules=modules)


def _statement(names: Sequence[str], selection: Selection) -> Any:
    overdue = OutboxRow.published_at < func.now() - text("make_interval(secs => :grace)")
    no_row = DeliveryRow.event_id.is_(None)
    history = OutboxRow.id <= func.coalesce(SubscriptionRow.backfill_until, 0)
    waiting = or_(OutboxRow.published_at.is_(None), history)
    state = DeliveryRow.state

    def count(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.count(OutboxRow.id).filter(condition)

    line_feed = aggregate_order_by(func.chr(10), OutboxRow.id)
    return (
        select(
            SubscriptionRow.name,
            OutboxRow.source_module,
            func.string_agg(cast(OutboxRow.event_id, String), line_feed).filter(
                state == "delivered"
            ),
            func.count(OutboxRow.id),
            count(state == "delivered"),
            count(state == "held"),
            count(and_(no_row, waiting)),
            count(or_(state == "retrying", and_(no_row, ~waiting, ~overdue))),
            count(state == "dead"),
            count(state == "discarded"),
            count(and_(no_row, ~waiting, overdue)),
        )
        .join(OutboxRow, and_(OutboxRow.id > SubscriptionRow.starts_after, wanted()))
        .outerjoin(
            DeliveryRow,
            and_(
                DeliveryRow.subscription == SubscriptionRow.name,
                DeliveryRow.event_id == OutboxRow.event_id,
            ),
        )
        .where(OutboxRow.id >= text(":start"), OutboxRow.id <= text(":through"))
        .where(SubscriptionRow.name == func.any(names), *selection.conditions(OutboxRow))
        .group_by(SubscriptionRow.name, OutboxRow.source_module)
    )


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in the outbox: how many rows, and the age of the oldest in seconds."""

    rows: int
    oldest_seconds: float


def backlog(connection: Connection) -> Backlog:
    """The outbox's unpublished rows; cheap, however many are published."""
    age = func.extract("epoch", func.now() - func.min(OutboxRow.recorded_at))
    rows, oldest = connection.execute(
        select(func.count(), func.coalesce(age, 0)).where(OutboxRow.published_at.is_(None))
    ).one()
    return Backlog(rows, max(0.0, round(float(oldest), 3)))


def unfinished(connection: Connection) -> dict[str, dict[str, int]]:
    """How many deliveries of each subscription are `held`, `retrying` and `dead`; cheap."""
    rows = connection.execute(
        select(DeliveryRow.subscription, DeliveryRow.state, func.count())
        .where(DeliveryRow.state.in_(UNFINISHED))
        .group_by(DeliveryRow.subscription, DeliveryRow.state)
    )
    found: dict[str, dict[str, int]] = {}
    for subscription, state, count in rows:
        found.setdefault(subscription, {})[state] = count
    return found
