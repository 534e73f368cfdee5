"""What was committed against what each subscription has done, by the run's own tables."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from cos_events.faults.truth import EXACTLY_ONCE, SUBSCRIPTIONS


@dataclass(frozen=True, slots=True)
class Books:
    """One subscription's books.

    Attributes:
        subscription: its name.
        exactly_once: whether its handler takes the session.
        committed: events that it is owed.
        delivered: events that had an effect.
        missing: events that had none.
        repeated: events that had more than one; never, if exactly once.
        undone: events that had one though they were rolled back; never.
    """

    subscription: str
    exactly_once: bool
    committed: int
    delivered: int
    missing: int
    repeated: int
    undone: int


@dataclass(frozen=True, slots=True)
class Moving:
    """How far a run has come: equal twice, and nothing has moved in between.

    Attributes:
        goal: deliveries that are owed, over all subscriptions.
        reached: those that had an effect.
        effects: how many effects there were.
        unpublished: events that wait in the outbox.
        retrying: deliveries that wait for a retry.
        dead: deliveries that wait for a person.
    """

    goal: int
    reached: int
    effects: int
    unpublished: int
    retrying: int
    dead: int

    @property
    def open(self) -> int:
        """What there is still to do."""
        return self.goal - self.reached + self.unpublished + self.retrying


def moving(connection: Connection) -> Moving:
    """How far the run has come."""
    return Moving(
        *connection.execute(
            text(
                "SELECT (SELECT count(*) * :subscriptions FROM faults.recorded),"
                " (SELECT count(*) FROM (SELECT DISTINCT subscription, event_id FROM faults.effect)"
                "  AS reached),"
                " (SELECT count(*) FROM faults.effect),"
                " (SELECT count(*) FROM cos_events.outbox WHERE published_at IS NULL),"
                " count(*) FILTER (WHERE state = 'retrying'),"
                " count(*) FILTER (WHERE state = 'dead')"
                " FROM cos_events.delivery WHERE state <> 'delivered'"
            ),
            {"subscriptions": len(SUBSCRIPTIONS)},
        ).one()
    )


def accounts(connection: Connection) -> list[Books]:
    """The books of every subscription of the run."""
    committed: int = connection.scalar(text("SELECT count(*) FROM faults.recorded"))
    found = connection.execute(
        text(
            "SELECT subscription, count(recorded.event_id) AS delivered,"
            " count(*) FILTER (WHERE effects > 1) AS repeated,"
            " count(*) FILTER (WHERE recorded.event_id IS NULL) AS undone"
            " FROM (SELECT subscription, event_id, count(*) AS effects"
            "       FROM faults.effect GROUP BY subscription, event_id) AS effect"
            " LEFT JOIN faults.recorded USING (event_id) GROUP BY subscription"
        )
    )
    by_name = {row.subscription: row for row in found}
    return [
        Books(
            name,
            name in EXACTLY_ONCE,
            committed,
            row.delivered if row else 0,
            committed - (row.delivered if row else 0),
            row.repeated if row else 0,
            row.undone if row else 0,
        )
        for name in SUBSCRIPTIONS
        for row in [by_name.get(name)]
    ]


def whereabouts(connection: Connection) -> list[str]:
    """What the bus itself says of the missing events, for each subscription."""
    rows = connection.execute(
        text(
            "SELECT wanted.name, coalesce(delivery.state, CASE WHEN outbox.event_id IS NULL"
            " THEN 'not in the outbox' WHEN outbox.published_at IS NULL THEN 'not published'"
            " ELSE 'published, no delivery row' END) AS state, count(*)"
            " FROM faults.recorded CROSS JOIN unnest(CAST(:names AS text[])) AS wanted (name)"
            " LEFT JOIN cos_events.outbox USING (event_id)"
            " LEFT JOIN cos_events.delivery ON delivery.event_id = recorded.event_id"
            "  AND delivery.subscription = wanted.name"
            " WHERE NOT EXISTS (SELECT FROM faults.effect WHERE effect.subscription = wanted.name"
            "  AND effect.event_id = recorded.event_id)"
            " GROUP BY 1, 2 ORDER BY 1, 2"
        ),
        {"names": list(SUBSCRIPTIONS)},
    )
    return [f"{name} has not received {count:,}: {state}" for name, state, count in rows]


def recorded_among(connection: Connection, event_ids: list[str]) -> int:
    """How many of these PostgreSQL has."""
    found: int = connection.scalar(
        text("SELECT count(*) FROM faults.recorded WHERE event_id = ANY(CAST(:ids AS uuid[]))"),
        {"ids": event_ids},
    )
    return found
