"""Whether a handler may be called right now, and what its call means for what waits."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from cos_events import pause, telemetry
from cos_events.attempt import ledger
from cos_events.envelope import Envelope
from cos_events.error_text import describe
from cos_events.store import deliveries, locks
from cos_events.store.engine import get_engine, get_relaxed_engine, wait_at_most
from cos_events.subscribers import Subscriber
from cos_events.telemetry import names


def may_call(subscriber: Subscriber, envelopes: Collection[Envelope]) -> bool:
    """Whether the handler may be called for these now; if not, they are held.

    Raises:
        LedgerAway: nobody can say.
    """
    if pause.state(subscriber.name) == "paused":
        with ledger():
            _hold(subscriber, envelopes)
        return False
    with ledger():
        # An order means one event per call.
        return subscriber.order is None or all(map(subscriber.order.take_turn, envelopes))


def outage(subscriber: Subscriber, envelopes: Collection[Envelope], error: BaseException) -> None:
    """The subscriber's own servers are down: pause it, hold these, count no attempt.

    Raises:
        LedgerAway: that could not be written.
    """
    with ledger():
        pause.pause(subscriber.name, describe(error))
        _hold(subscriber, envelopes)


def called(subscriber: Subscriber) -> None:
    """The handler was called and met no outage."""
    if pause.state(subscriber.name) == "probing":
        with suppress(SQLAlchemyError):
            pause.resume(subscriber.name)


def ended(subscriber: Subscriber, envelopes: Iterable[Envelope]) -> None:
    """These are delivered or dead: others may have waited for them."""
    if subscriber.order is not None:
        for envelope in envelopes:
            subscriber.order.pass_on(envelope)


def count_death(subscriber: Subscriber, envelope: Envelope) -> int:
    """Count that a process died, or may have died, from this event; returns how many in a row.

    Raises:
        LedgerAway: that could not be written.
    """
    with ledger(), get_relaxed_engine().begin() as connection:
        wait_at_most(connection, locks.COPY_TIMEOUT_MS)
        return deliveries.count_death(connection, subscriber.name, envelope.base_log_id)


def _hold(subscriber: Subscriber, envelopes: Collection[Envelope]) -> None:
    with get_engine().begin() as connection:
        deliveries.hold(connection, subscriber.name, [each.base_log_id for each in envelopes])
    for each in envelopes:
        telemetry.count(names.HELD, each.source_module, subscriber.name)
