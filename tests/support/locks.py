"""Who waits for whom in PostgreSQL."""

from __future__ import annotations

from sqlalchemy import Engine, text


def waits_for_a_lock(engine: Engine) -> bool:
    """Whether a statement in the engine's database waits for another transaction."""
    with engine.connect() as connection:
        found = text(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(connection.scalar(found))
