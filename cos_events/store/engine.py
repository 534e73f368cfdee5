"""One engine a process on the bus's database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from cos_events.errors import DatabaseAway, SchemaMissing
from cos_events.process import PerProcess
from cos_events.settings import get_settings, mask

CONNECT_TIMEOUT = 5
"""Seconds to wait for PostgreSQL to accept a connection."""


def make_engine(url: str) -> Engine:
    """An engine that notices a restarted server in time, and puts no values into its errors."""
    return create_engine(
        url,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={"connect_timeout": CONNECT_TIMEOUT},
    )


_engine = PerProcess(lambda: make_engine(get_settings().database_url))


def get_engine() -> Engine:
    """The engine on `DATABASE_URL`, made on first use in each process."""
    return _engine.get()


def lacks_tables(error: DBAPIError) -> bool:
    """Whether a statement failed because the tables are missing, or old."""
    return getattr(error.orig, "pgcode", None) in {"42P01", "42703", "3F000"}


@contextmanager
def explained() -> Iterator[None]:
    """Turn the two errors that a person can mend into sentences.

    Raises:
        DatabaseAway: PostgreSQL cannot be reached, or refuses the user.
        SchemaMissing: it has no cos-events tables, or old ones.
    """
    url = mask(get_settings().database_url)
    try:
        yield
    except OperationalError as error:
        raise DatabaseAway(
            f"PostgreSQL at {url} cannot be used: {str(error.orig).strip()}; "
            "check that it runs and that DATABASE_URL is right"
        ) from error
    except ProgrammingError as error:
        if not lacks_tables(error):
            raise
        raise SchemaMissing(
            f"the database at {url} lacks cos-events tables, or has old ones: "
            "run `cos-events db upgrade`"
        ) from error


def wait_at_most(connection: Connection, milliseconds: int) -> None:
    """Bound the wait for a locked row, until the transaction or its SAVEPOINT ends."""
    connection.execute(text(f"SET LOCAL lock_timeout = {int(milliseconds)}"))


def reset() -> None:
    """Close this process's engine; the next use reads `DATABASE_URL` again."""
    if (engine := _engine.reset()) is not None:
        engine.dispose()
