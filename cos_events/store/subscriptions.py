"""Statements on the subscriptions: how publishers learn about them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    Connection,
    Row,
    ScalarSelect,
    Text,
    case,
    cast,
    delete,
    false,
    func,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from cos_events.errors import SubscriptionError
from cos_events.store import locks
from cos_events.store.conditions import wanted as wanted_by_it
from cos_events.store.models import STILL_TO_RUN, DeliveryRow, OutboxRow, SubscriptionRow
from cos_events.store.removal import is_half_removed
from cos_events.subscription import Recipient, Subscription

logger = logging.getLogger(__name__)

StartFrom = Literal["now", "beginning"] | datetime
"""Where in the history a new subscription begins."""


def register(
    connection: Connection,
    subscriptions: Iterable[Subscription],
    start_from: Mapping[str, StartFrom] | None = None,
) -> None:
    """Register these subscriptions.

    Args:
        connection: in a transaction.
        subscriptions: those whose code a worker has.
        start_from: by name, where a new one begins; by default it is owed what is recorded from
            now on.

    Raises:
        SubscriptionError: one of that name is being removed.
    """
    now = select(func.coalesce(func.max(OutboxRow.id), 0)).scalar_subquery()
    filters = tuple_(SubscriptionRow.modules, SubscriptionRow.event_types)
    # Always in the same order: two workers that start together would otherwise deadlock.
    subscriptions = sorted(subscriptions, key=lambda each: each.name)
    for subscription in subscriptions:
        locks.subscription(connection, subscription.name)
    for subscription in subscriptions:
        row = {
            "name": subscription.name,
            "modules": _sorted(subscription.modules),
            "event_types": _sorted(subscription.event_types),
        }
        changed = _note_change(connection, subscription)
        begin = _before((start_from or {}).get(subscription.name, "now"))
        history = {} if begin is None else {"backfill_until": now}
        first = now if begin is None else begin
        connection.execute(
            insert(SubscriptionRow)
            .values(
                starts_after=first, settled_through=first, keyed_through=first, **row, **history
            )
            .on_conflict_do_update(
                index_elements=["name"],
                set_={
                    **row,
                    # With other filters, events that were skipped may be owed now.
                    "settled_through": case(
                        (
                            filters.is_distinct_from(
                                tuple_(
                                    cast(row["modules"], ARRAY(Text)),
                                    cast(row["event_types"], ARRAY(Text)),
                                )
                            ),
                            SubscriptionRow.starts_after,
                        ),
                        else_=SubscriptionRow.settled_through,
                    ),
                },
            )
        )
        if changed:
            forget_unwanted(connection, subscription.name)


def _note_change(connection: Connection, now: Subscription) -> bool:
    """Whether it wants other events than before; if so, logs it."""
    known = connection.execute(_LOAD.where(SubscriptionRow.name == now.name)).one_or_none()
    if known is None and is_half_removed(connection, now.name):
        # What is dropped next, or skipped as delivered, would be the new one's.
        raise SubscriptionError(
            f"{now.name} is being removed: wait until that is done, or run "
            f"`cos-events subscriptions remove {now.name}` again"
        )
    before = None if known is None else (known.modules, known.event_types)
    wanted = _sorted(now.modules), _sorted(now.event_types)
    if changed := before not in (None, wanted):
        logger.warning(
            "%s now wants different events: modules, event types %s, were %s. If two "
            "applications declare it, each takes the other's events: rename one",
            *(now.name, wanted, before),
        )
    return changed


def forget_unwanted(connection: Connection, name: str) -> None:
    """Drop its deliveries of events that it no longer wants: no worker would end them.

    Those that a handler is running at this moment stay.
    """
    unwanted = (
        select(DeliveryRow.event_id)
        .join(OutboxRow, OutboxRow.event_id == DeliveryRow.event_id)
        .join(SubscriptionRow, SubscriptionRow.name == DeliveryRow.subscription)
        .where(
            DeliveryRow.subscription == name, DeliveryRow.state.in_(STILL_TO_RUN), ~wanted_by_it()
        )
        .with_for_update(skip_locked=True, of=DeliveryRow)
    )
    connection.execute(
        delete(DeliveryRow).where(
            DeliveryRow.subscription == name, DeliveryRow.event_id.in_(unwanted)
        )
    )


def _before(start: StartFrom) -> ScalarSelect[int] | None:
    """The last outbox id before this start; None for now."""
    if start == "now":
        return None
    earlier = select(func.coalesce(func.max(OutboxRow.id), 0))
    return earlier.where(
        false() if start == "beginning" else OutboxRow.recorded_at < start
    ).scalar_subquery()


_LOAD = select(
    SubscriptionRow.name,
    SubscriptionRow.modules,
    SubscriptionRow.event_types,
    SubscriptionRow.holding,
    SubscriptionRow.holds,
).order_by(SubscriptionRow.name)


def load(connection: Connection) -> list[Recipient]:
    """Every subscription there is, by name."""
    rows = connection.execute(_LOAD)
    return [
        Recipient(name, _set(modules), _set(types), holding, holds)
        for name, modules, types, holding, holds in rows
    ]


def rows(connection: Connection) -> Sequence[Row[Any]]:
    """Every subscription with its whole state, by name."""
    columns = SubscriptionRow.__table__.c
    return connection.execute(select(*columns).order_by(columns.name)).all()


def require(connection: Connection, name: str | None) -> None:
    """Refuse the name of a subscription that does not exist; None passes.

    Raises:
        SubscriptionError: names those there are.
    """
    known = [each.name for each in load(connection)]
    if name is not None and name not in known:
        raise SubscriptionError(
            f"there is no subscription {name!r}; there are: {', '.join(known) or 'none'}"
        )


def conditions(connection: Connection) -> dict[str, str]:
    """How each subscription is, by name.

    `live`; `holding`, and `paused: why`: its new copies wait in PostgreSQL; `backfilling`: history
    is on its way to it.
    """
    condition = case(
        (
            SubscriptionRow.paused_until.is_not(None),
            func.concat("paused: ", SubscriptionRow.paused_because),
        ),
        (SubscriptionRow.holding, "holding"),
        (SubscriptionRow.backfill_until.is_not(None), "backfilling"),
        else_="live",
    )
    rows = connection.execute(
        select(SubscriptionRow.name, condition).order_by(SubscriptionRow.name)
    )
    return {name: found for name, found in rows}  # noqa: C416 - a Result is taken for a mapping


def _sorted(names: frozenset[str] | None) -> list[str] | None:
    return None if names is None else sorted(names)


def _set(names: list[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)
