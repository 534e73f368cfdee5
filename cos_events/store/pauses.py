"""Statements on pauses: a subscription whose own servers are down is left alone, and probed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

from sqlalchemy import ColumnElement, Connection, case, func, literal, or_, select, update

from cos_events.store.models import SubscriptionRow

FIRST_PROBE = 1.0
"""Seconds from a pause's beginning to its first probe; each failed probe doubles it."""

LONGEST_WAIT = 300.0
"""The most seconds between two probes."""

UNTIL_RESUMED = datetime(9999, 12, 31, tzinfo=UTC)
"""As `paused_until`: until a person resumes it."""

PauseState = Literal["running", "paused", "probing"]
"""`probing`: paused, and the next event tests whether the outage is over."""


def state(connection: Connection, name: str) -> PauseState:
    """Whether this subscription's handler may be called now."""
    until = SubscriptionRow.paused_until
    found: PauseState | None = connection.scalar(
        select(
            case(
                (until.is_(None), literal("running")),
                (until <= func.now(), literal("probing")),
                else_=literal("paused"),
            )
        ).where(SubscriptionRow.name == name)
    )
    return found or "running"


def pause(connection: Connection, name: str, because: str) -> bool:
    """Leave it alone for a while, longer each time that a probe fails.

    Returns:
        Whether this began the pause, or extended it: of many that fail at once, only one does.
    """
    seconds = func.least(LONGEST_WAIT, FIRST_PROBE * func.power(2, SubscriptionRow.probes))
    paused = connection.execute(
        update(SubscriptionRow)
        .where(SubscriptionRow.name == name, _open())
        .values(
            paused_until=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds),
            paused_because=because,
            # The power of a larger number would overflow.
            probes=func.least(SubscriptionRow.probes + 1, 30),
            probing_until=None,
        )
    )
    return bool(paused.rowcount)


def resume(connection: Connection, name: str) -> bool:
    """An event got through: resume, unless a person paused it. Returns whether it was paused."""
    return _resume(connection, name, SubscriptionRow.paused_until <= func.now())


def pause_by_hand(connection: Connection, name: str, because: str) -> None:
    """Pause it until it is resumed."""
    connection.execute(
        update(SubscriptionRow)
        .where(SubscriptionRow.name == name)
        .values(paused_until=UNTIL_RESUMED, paused_because=because, probes=0, probing_until=None)
    )


def reason_by_hand(connection: Connection, name: str) -> str | None:
    """Why a person has paused it; None if nobody has. It cannot change during this transaction."""
    return connection.scalar(
        select(SubscriptionRow.paused_because)
        .where(SubscriptionRow.name == name, SubscriptionRow.paused_until == UNTIL_RESUMED)
        .with_for_update()
    )


def resume_by_hand(connection: Connection, name: str) -> bool:
    """Resume, whoever paused it; returns whether it was paused."""
    return _resume(connection, name, SubscriptionRow.paused_until.is_not(None))


def begin_probe(connection: Connection, name: str, within: timedelta) -> bool:
    """Whether one event may probe now; no other may before its outcome, or `within` has passed."""
    begun = connection.execute(
        update(SubscriptionRow)
        .where(
            SubscriptionRow.name == name,
            SubscriptionRow.paused_until <= func.now(),
            or_(
                SubscriptionRow.probing_until.is_(None),
                SubscriptionRow.probing_until <= func.now(),
            ),
        )
        .values(probing_until=func.now() + within)
    )
    return bool(begun.rowcount)


def _open() -> ColumnElement[bool]:
    return or_(SubscriptionRow.paused_until.is_(None), SubscriptionRow.paused_until <= func.now())


def _resume(connection: Connection, name: str, which: ColumnElement[bool]) -> bool:
    resumed = connection.execute(
        update(SubscriptionRow)
        .where(SubscriptionRow.name == name, which)
        .values(paused_until=None, paused_because=None, probes=0, probing_until=None)
    )
    return bool(resumed.rowcount)
