"""What became of one event, at each subscription."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, and_, func, select

from cos_events.store.conditions import blocked
from cos_events.store.models import AT_ONCE, DeliveryRow, OutboxRow, SubscriptionRow
from cos_events.subscription import Subscription


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event of the outbox.

    Attributes:
        event_id: the envelope's `base_log_id`.
        recorded_at: when the application recorded it.
        published_at: when a publisher broadcast it; None while it waits.
        envelope: its JSON.
    """

    event_id: UUID
    recorded_at: datetime
    published_at: datetime | None
    envelope: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it at one subscription.

    Attributes:
        subscription: its name.
        state: from the ledger (`held`, `retrying`, `delivered`, `dead`, `discarded`), or, if that
            knows nothing yet, `waiting` to be published or for its turn in the history, `in_flight`
            or `missing`, as `verify` counts them; `not_wanted` if it is not owed.
        attempts: how often the handler ran for it.
        since: when the ledger noted that.
        next_attempt_at: when it runs next at the earliest, if it waits for a time.
        why: what it waits for, the last error, whether it was replayed or corrected; empty if
            there is nothing to say.
    """

    subscription: str
    state: str
    attempts: int
    since: datetime | None
    next_attempt_at: datetime | None
    why: str


def recorded(connection: Connection, event_id: UUID) -> Recorded | None:
    """The event, if the outbox still has it."""
    columns = OutboxRow.event_id, OutboxRow.recorded_at, OutboxRow.published_at, OutboxRow.envelope
    row = connection.execute(select(*columns).where(OutboxRow.event_id == event_id)).one_or_none()
    return row and Recorded(*row)


def outcomes(connection: Connection, event_id: UUID, grace: timedelta) -> list[Outcome]:
    """What became of a recorded event at every subscription, by name.

    Args:
        connection: on the bus's database.
        event_id: the event's.
        grace: what was published longer ago, and not received, is missing.
    """
    rows = connection.execute(
        select(
            SubscriptionRow.name,
            SubscriptionRow.paused_until,
            SubscriptionRow.paused_because,
            SubscriptionRow.holding,
            SubscriptionRow.modules,
            SubscriptionRow.event_types,
            OutboxRow.source_module,
            OutboxRow.event_type,
            (OutboxRow.id > SubscriptionRow.starts_after).label("since_its_start"),
            (OutboxRow.id <= func.coalesce(SubscriptionRow.backfill_until, 0)).label("history"),
            OutboxRow.published_at,
            (OutboxRow.published_at < func.now() - grace).label("overdue"),
            func.now().label("now"),
            DeliveryRow.state,
            DeliveryRow.attempts,
            DeliveryRow.updated_at,
            DeliveryRow.next_attempt_at,
            DeliveryRow.error,
            blocked().label("blocked"),
            DeliveryRow.generation,
            DeliveryRow.correction.is_not(None).label("corrected"),
        )
        .select_from(SubscriptionRow)
        .join(OutboxRow, OutboxRow.event_id == event_id)
        .outerjoin(
            DeliveryRow,
            and_(
                DeliveryRow.subscription == SubscriptionRow.name,
                DeliveryRow.event_id == OutboxRow.event_id,
            ),
        )
        .order_by(SubscriptionRow.name)
    )
    return [_known(row) if row.state else _not_known(row) for row in rows]


def _known(row: Any) -> Outcome:
    """What the ledger says."""
    due = row.next_attempt_at if row.state in ("held", "retrying") else None
    later = due is not None and due > row.now
    waits_for = ""
    if row.state == "held" and not later:
        if row.paused_until is not None:
            waits_for = f"paused: {row.paused_because}"
        elif row.blocked:
            waits_for = "another event of its key comes first"
        elif row.holding:
            waits_for = "its queue is full"
    times = "once" if row.generation == 1 else f"{row.generation} times"
    replayed = f"replayed {times} by `cos-events replay`" if row.generation else ""
    corrected = "with a corrected payload" if row.corrected else ""
    return Outcome(
        row.name,
        row.state,
        row.attempts,
        row.updated_at,
        None if due == AT_ONCE else due,
        "; ".join(filter(None, (waits_for, row.error, replayed, corrected))),
    )


def _not_known(row: Any) -> Outcome:
    """What follows from its having no row."""
    modules, types = (each and frozenset(each) for each in (row.modules, row.event_types))
    subscription = Subscription(row.name, modules, types)
    if not subscription.wants_module(row.source_module):
        found = "not_wanted", "it wants other modules"
    elif not subscription.wants(row.source_module, row.event_type):
        found = "not_wanted", "it wants other event types"
    elif not row.since_its_start:
        found = "not_wanted", "recorded before the subscription began"
    elif row.published_at is None:
        found = "waiting", "not published yet"
    elif row.history:
        found = "waiting", "its turn in the history has not come"
    elif row.overdue:
        found = "missing", "published, and not heard of since: the relay sends it again"
    else:
        found = "in_flight", ""
    state, why = found
    return Outcome(row.name, state, 0, None, None, why)
