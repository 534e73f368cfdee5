"""Databases that are not as they should be."""

from __future__ import annotations

from sqlalchemy import Engine, text


def take_no_writes(database: Engine) -> None:
    """From the next connection on, as on a standby."""
    name = database.url.database
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))


def be_at_revision(database: Engine, new: str, old: str = "0004") -> None:
    """Have the bus's tables say that they are of another version."""
    change = "UPDATE cos_events.schema_version SET version_num = :new WHERE version_num = :old"
    with database.begin() as connection:
        assert connection.execute(text(change), {"old": old, "new": new}).rowcount == 1
