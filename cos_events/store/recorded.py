"""Of which modules and types the retained events are."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Connection, select

from cos_events.store.models import OutboxRow


def names(connection: Connection, column: Literal["source_module", "event_type"]) -> list[str]:
    """The different values of this column; reads the whole outbox."""
    return list(connection.scalars(select(getattr(OutboxRow, column)).distinct()))
