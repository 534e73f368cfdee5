"""Statements that run history again for one subscription."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, func, select, text

from cos_events.selection import Selection
from cos_events.store.conditions import wanted
from cos_events.store.deliveries import from_outbox
from cos_events.store.models import AT_ONCE, DeliveryRow, OutboxRow, SubscriptionRow


def _conditions(subscription: str, selection: Selection) -> list[ColumnElement[bool]]:
    """Of the published events that it wants, on `outbox` joined with `subscription`."""
    return [
        SubscriptionRow.name == subscription,
        OutboxRow.published_at.is_not(None),
        wanted(),
        *selection.conditions(OutboxRow),
    ]


def count(connection: Connection, subscription: str, selection: Selection) -> tuple[int, int]:
    """How many of these events it has been owed, and the last one's outbox id."""
    found = select(func.count(), func.coalesce(func.max(OutboxRow.id), 0))
    number, last = connection.execute(
        found.select_from(OutboxRow, SubscriptionRow).where(*_conditions(subscription, selection))
    ).one()
    return number, last


def next_page(  # noqa: PLR0913, PLR0917 - one page of a history
    connection: Connection,
    subscription: str,
    selection: Selection,
    after: int,
    through: int,
    limit: int,
) -> Sequence[int]:
    """The outbox ids of the next of these events: those behind `after`, up to `through`."""
    return connection.scalars(
        select(OutboxRow.id)
        .select_from(OutboxRow, SubscriptionRow)
        .where(OutboxRow.id > after, OutboxRow.id <= through, *_conditions(subscription, selection))
        .order_by(OutboxRow.id)
        .limit(limit)
    ).all()


def run_again(connection: Connection, subscription: str, ids: Sequence[int]) -> int:
    """Hold these events for it, as if it had never had them.

    What is held or waits for a retry runs anyway, and is left as it is.

    Args:
        connection: in a transaction.
        subscription: whose history runs again.
        ids: of the outbox.

    Returns:
        How many there still were.
    """
    page = (
        select(OutboxRow.event_id, OutboxRow.id)
        .select_from(OutboxRow, SubscriptionRow)
        .where(OutboxRow.id == func.any(list(ids)), SubscriptionRow.name == subscription, wanted())
        .order_by(OutboxRow.id)
        # What retention is about to drop would otherwise be held without its event.
        .with_for_update(of=OutboxRow, key_share=True)
        .cte("page")
    )
    statement = from_outbox(
        {
            "subscription": subscription,
            "event_id": page.c.event_id,
            "outbox_id": page.c.id,
            "state": "held",
            "attempts": 0,
            "generation": 1,
            "next_attempt_at": AT_ONCE,
        }
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["subscription", "event_id"],
            set_={
                "state": "held",
                "attempts": 0,
                "deaths": 0,
                "error": None,
                "generation": DeliveryRow.generation + 1,
                "next_attempt_at": AT_ONCE,
                "updated_at": func.clock_timestamp(),
            },
            where=DeliveryRow.state.in_(["delivered", "dead", "discarded"]),
        )
    )
    return connection.scalar(select(func.count()).select_from(page)) or 0


def unfinished(connection: Connection, subscription: str) -> int:
    """How many deliveries of a replay have not ended; cheap."""
    waiting = text(
        "SELECT count(*) FROM cos_events.delivery WHERE subscription = :name "
        "AND state IN ('held', 'retrying') AND generation > 0"
    )
    return connection.scalar(waiting, {"name": subscription}) or 0
