"""Brings a database to the tables of this version: `cos-events db upgrade`.

An installed package adds migrations of its own by an entry point of group `cos_events.migrations`
whose value is `package:folder`; they are a branch of their own and may depend on the bus's.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine

from cos_events.store import locks
from cos_events.store.models import SCHEMA

VERSION_TABLE = "schema_version"


def upgrade(engine: Engine) -> tuple[list[str], list[str]]:
    """Run the migrations that the database lacks, in one transaction.

    Returns:
        The revisions before and after, one a branch.
    """
    config = _config()
    with engine.begin() as connection:
        locks.upgrade(connection)
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        before = current(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, "heads")
        after = current(connection)
    return before, after


def current(connection: Connection) -> list[str]:
    """The revisions that the database is at, one a branch; none before the first."""
    context = MigrationContext.configure(
        connection, opts={"version_table": VERSION_TABLE, "version_table_schema": SCHEMA}
    )
    return sorted(context.get_current_heads())


def _config() -> Config:
    config = Config()
    locations = [_location(each) for each in entry_points(group="cos_events.migrations")]
    config.set_main_option("script_location", "cos_events:store/migrations")
    config.set_main_option("path_separator", "newline")
    config.set_main_option(
        "version_locations", "\n".join(["cos_events:store/migrations/versions", *sorted(locations)])
    )
    return config


def _location(entry: EntryPoint) -> str:
    """A folder among its own distribution's files; `package:folder` where they lie elsewhere.

    An application's package of the same name, `workers` say, comes before it when imported.
    """
    package, _, folder = entry.value.partition(":")
    if entry.dist is not None:
        found = Path(str(entry.dist.locate_file("/".join((*package.split("."), folder)))))
        if found.is_dir():
            return str(found)
    return entry.value
