"""Events with the same key, one after another: which key an event has, and whose turn it is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError

from cos_events.broadcast import Copy, send_to_queue
from cos_events.envelope import Envelope
from cos_events.error_text import one_line
from cos_events.errors import BroadcastError, CosEventsError, SubscriptionError
from cos_events.settings import get_settings
from cos_events.store import held, locks, order
from cos_events.store.engine import get_engine, wait_at_most

logger = logging.getLogger(__name__)

OrderBy = str | Callable[[Envelope], object]
"""A field of the envelope, such as `request_id` or `data.customer`, or a function of it."""


class Order:
    """The order that a subscription asks for.

    An event whose key is missing, None or empty, or cannot be determined, has no order.

    Parameters:
        name: of the subscription.
        by: where an event's key is found.
    """

    def __init__(self, name: str, by: OrderBy) -> None:
        self._name = name
        self._by = _field(name, by) if isinstance(by, str) else by

    def key_of(self, raw: str) -> str:
        """The key of an envelope's JSON; its own id if it has none."""
        try:
            envelope = Envelope.decode(raw)
            key = self._by(envelope)
        except CosEventsError:
            return ""
        except Exception:  # the function is the subscriber's own
            event_id = envelope.base_log_id
            logger.exception("%s: order_by failed; event %s has no order", self._name, event_id)
            key = None
        return str(envelope.base_log_id if key is None or key == "" else key)

    def take_turn(self, envelope: Envelope) -> bool:
        """Whether this event may run now; if not, it is held until those before it have ended."""
        lost_after = timedelta(seconds=get_settings().redeliver_after)
        with get_engine().begin() as connection:
            locks.order(connection, self._name)
            # Another copy of it may be running, for any length of time: nobody else has a turn.
            wait_at_most(connection, locks.COPY_TIMEOUT_MS)
            return order.take_turn(
                connection, self._name, envelope.base_log_id, self.key_of, lost_after
            )

    def pass_on(self, envelope: Envelope) -> None:
        """This event has ended: let the next one of its key go; failing that, the relay does."""
        lost_after = timedelta(seconds=get_settings().redeliver_after)
        try:
            with get_engine().begin() as connection:
                # Also in a worker's event loop, which enforces the time limit of what is awaited.
                wait_at_most(connection, locks.COPY_TIMEOUT_MS)
                locks.order(connection, self._name)
                key = order.key(connection, self._name, envelope.base_log_id)
                following = held.release(connection, self._name, 1, lost_after, key) if key else []
            if following:
                copies = [Copy(row.envelope, row.attempts, row.traceparent) for row in following]
                send_to_queue(self._name, copies)
        except (SQLAlchemyError, BroadcastError) as error:
            logger.warning(
                "%s: the next event of a key waits for the relay: %s", self._name, one_line(error)
            )


def _field(name: str, path: str) -> Callable[[Envelope], object]:
    first, *below = path.split(".")
    if first not in Envelope.model_fields or (below and first != "data"):
        raise SubscriptionError(
            f"{name}: order_by={path!r} names no field of an envelope: use "
            f"{', '.join(Envelope.model_fields)}, data.<key>, or a function"
        )

    def value(envelope: Envelope) -> object:
        found: object = getattr(envelope, first)
        for key in below:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    return value
