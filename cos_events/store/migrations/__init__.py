"""Brings a database to the tables of this version: `cos-events db upgrade`.

An installed package adds migrations of its own by an entry point of group `cos_events.migrations`
whose value is `package:folder`; they are a branch of their own and may depend on the bus's.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from cos_events.store import locks
from cos_events.store.models import SCHEMA

VERSION_TABLE = "schema_version"


def upgrade(engine: Engine) -> tuple[list[str], list[str]]:
    """Run the migrations that the database lacks, in one transaction.

    A database of a newer version stays as it is.

    Returns:
        The revisions before and after, one a branch.
    """
    config = _config()
    with engine.begin() as connection:
        locks.upgrade(connection)
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        before = current(connection)
        config.attributes["connection"] = connection
        if not unknown(before):
            command.upgrade(config, "heads")
        after = current(connection)
    return before, after


def current(connection: Connection) -> list[str]:
    """The revisions that the database is at, one a branch; none before the first."""
    context = MigrationContext.configure(
        connection, opts={"version_table": VERSION_TABLE, "version_table_schema": SCHEMA}
    )
    return sorted(context.get_current_heads())


def heads() -> list[str]:
    """The newest revisions of this version, one a branch."""
    return sorted(_scripts().get_heads())


def unknown(revisions: Iterable[str]) -> list[str]:
    """Those that this version does not have: the database is newer, or has another package's."""
    known = {each.revision for each in _scripts().walk_revisions()}
    return sorted(set(revisions) - known)


def is_behind(revisions: Iterable[str]) -> bool:
    """Whether a database at these revisions lacks a migration of this version."""
    revisions = set(revisions)
    return not unknown(revisions) and not revisions >= set(heads())


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


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
