"""Events in the outbox, for tests of what publishes them."""

from __future__ import annotations

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from cos_events import record_event
from cos_events.store.models import OutboxRow


def record(engine: Engine, count: int, module: str = "cc") -> list[int]:
    """The outbox ids of committed events."""
    with Session(engine) as session:
        events = [record_event(session, "event_log", {"n": n}, module=module) for n in range(count)]
        session.commit()
        found = session.scalars(select(OutboxRow.id).where(OutboxRow.event_id.in_(events)))
        return sorted(found)


def unpublished(engine: Engine) -> int:
    waiting = select(func.count(OutboxRow.id)).where(OutboxRow.published_at.is_(None))
    with Session(engine) as session:
        return session.scalar(waiting) or 0
