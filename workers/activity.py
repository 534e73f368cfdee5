"""Subscription `activity`: counts events by module, type and hour."""

from __future__ import annotations

from collections import Counter

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cos_events import Envelope, subscriber
from workers.models import Activity


@subscriber("activity", batch_size=100, batch_timeout=0.05)
def activity(messages: list[Envelope], session: Session) -> None:
    """Add these events to their hours; exactly once, so the sum equals the committed events."""
    counts = Counter(
        (m.source_module, m.event_type, m.timestamp.replace(minute=0, second=0, microsecond=0))
        for m in messages
    )
    # In one order always: two workers that take the same rows the other way round would deadlock.
    rows = [
        {"source_module": module, "event_type": event_type, "hour": hour, "events": events}
        for (module, event_type, hour), events in sorted(counts.items())
    ]
    statement = insert(Activity).values(rows)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["source_module", "event_type", "hour"],
            set_={"events": Activity.events + statement.excluded.events},
        )
    )
