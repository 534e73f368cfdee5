"""How a delivery would end today: the handler runs, and what it wrote is rolled back."""

from __future__ import annotations

from sqlalchemy import text

from cos_events.attempt import HandlersSession, call_within
from cos_events.envelope import Envelope
from cos_events.error_text import describe
from cos_events.errors import SubscriptionError
from cos_events.store.engine import explained, get_engine
from cos_events.subscribers import Subscriber


def rehearse(subscriber: Subscriber, envelope: Envelope) -> str:
    """Run a handler for one envelope in a transaction that is rolled back.

    Returns:
        `delivered`, or the error's type and text.

    Raises:
        SubscriptionError: the handler takes no session: what it does could not be undone.
    """
    if not subscriber.wants_session:
        raise SubscriptionError(
            f"{subscriber.name} takes no session: what its handler does could not be undone; "
            "replay one event instead, with --event"
        )
    with explained(), HandlersSession(get_engine()) as session:
        try:
            call_within(session.begin(), subscriber, [envelope])
            session.flush()
            session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        except Exception as error:  # noqa: BLE001 - whatever the handler raises
            return describe(error)
        finally:
            session.rollback()
    return "delivered"
