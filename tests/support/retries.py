"""Events that wait for their retry."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy import Engine

from cos_events.store import deliveries


def failed(engine: Engine, name: str, event_id: UUID, *, attempts: int = 1, wait: float) -> None:
    """Let a subscription's handler have failed at this; it is due in so many seconds."""
    with engine.begin() as connection:
        deliveries.note_failure(
            connection,
            name,
            event_id,
            state="retrying",
            attempts=attempts,
            error="again",
            wait=timedelta(seconds=wait),
        )
