"""One engine per process on the bus's database."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import psycopg2

# As SQLAlchemy does at the first engine: a child forked meanwhile would wait forever for a module
# that a thread of its parent is importing.
import psycopg2.extras
from psycopg2 import errors
from sqlalchemy import Connection, Dialect, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import (
    DBAPIError,
    DisconnectionError,
    InternalError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from cos_events.error_text import one_line
from cos_events.errors import DatabaseAway, SchemaMissing
from cos_events.process import PerProcess
from cos_events.settings import get_settings, mask, outline
from cos_events.telemetry import trace_statements

logger = logging.getLogger(__name__)

_OWN_WAIT = "cos_events_own_wait"
"""The execution option that says what PostgreSQL's commits wait for by default."""

PATIENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""How long to wait for a server that does not answer, unless the URL says otherwise: seconds to
accept a connection; until a silent one is probed, between probes, and how many; and milliseconds in
which what was sent must have arrived. With the system's defaults a worker would wait two hours for
a server whose host is gone."""

IDLE_SECONDS = 1.0
"""A pooled connection that was idle for this long is tested before it is used again."""


READ_ONLY = (
    "accepts no writes: is it a standby, or is default_transaction_read_only on? DATABASE_URL "
    "must name the primary"
)
"""What is wrong with such a server, and what to do."""


def make_engine(url: str, **options: Any) -> Engine:
    """An engine that notices a restarted server in time, and keeps values out of its errors.

    Args:
        url: of the database.
        options: more of SQLAlchemy's own.
    """
    # Whatever the server's default: a statement has to see what was committed before it, or the
    # relay's watermark and the order of events would rely on what they cannot see.
    options.setdefault("isolation_level", "READ COMMITTED")
    if "poolclass" not in options:
        # The last one used: its server process has its caches warm.
        options["pool_use_lifo"] = True
    said = make_url(url).query
    patience = {name: value for name, value in PATIENCE.items() if name not in said}
    engine = create_engine(url, hide_parameters=True, connect_args=patience, **options)
    # SQLAlchemy's own `pool_pre_ping` asks before each use: a quarter of a delivery's time.
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", _ping_if_idle)
    return trace_statements(engine)


def _note_use(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _ping_if_idle(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
    if time.monotonic() - record.info.get("used_at", inf) < IDLE_SECONDS:
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        connection.rollback()
    except Exception as error:
        raise DisconnectionError from error


_engine = PerProcess(lambda: make_engine(get_settings().database_url))


def _connect_relaxed(
    dialect: Dialect, _record: object, arguments: Any, parameters: dict[str, Any]
) -> Any:
    # As an option of the connection: behind a pooler a SET would outlive our transaction and affect
    # the pooler's other clients. One that does not pass options on refuses, by name.
    given = parameters.get("options") or os.environ.get("PGOPTIONS", "")
    options = f"{given} -c synchronous_commit=off"
    try:
        return dialect.connect(*arguments, **{**parameters, "options": options})
    except psycopg2.OperationalError as error:
        if "options" not in str(error):
            raise
        logger.info("every commit of this process waits for the disk: %s", one_line(error))
        return None


def _make_relaxed_engine(**options: Any) -> Engine:
    engine = make_engine(get_settings().database_url, **options)
    event.listen(engine, "do_connect", _connect_relaxed)
    return engine


_relaxed_engine = PerProcess(_make_relaxed_engine)
_autocommit_engine = PerProcess(
    # A separate pool: switching a connection's mode back and forth costs as much as a statement.
    lambda: _make_relaxed_engine(isolation_level="AUTOCOMMIT")
)


_watching_engine = PerProcess(lambda: make_engine(get_settings().database_url, poolclass=NullPool))


def get_engine() -> Engine:
    """The engine on `DATABASE_URL`, made on first use in each process."""
    return _engine.get()


def get_watching_engine() -> Engine:
    """One that reconnects each time.

    For what watches the server: one that stands still, while its system acknowledges what it is
    sent, is noticed only because it does not accept a connection within `connect_timeout`.
    """
    return _watching_engine.get()


def get_autocommit_engine() -> Engine:
    """The relaxed engine for single statements: each commits by itself, in one trip."""
    return _autocommit_engine.get()


def get_relaxed_engine() -> Engine:
    """Another one, whose commits do not wait for the disk.

    For what is only repeated if PostgreSQL crashes a moment later: what its log keeps has no gaps,
    so nothing that builds on a lost commit outlives it.
    """
    return _relaxed_engine.get()


def wait_for_disk() -> None:
    """Return once all that any relaxed connection has committed so far is on the disk.

    Commits alone wait for nothing here: a note in PostgreSQL's log, committed as the server says,
    waits for all of the log before it. Any role may write one (`pg_logical_emit_message`).
    """
    with _engine.get().begin() as connection:
        connection.execute(text("SELECT pg_logical_emit_message(true, 'cos_events', '')"))


def get_handlers_engine() -> Engine:
    """The relaxed engine, for handlers' sessions: what records new events waits anyway.

    It waits as PostgreSQL is configured now: that is asked here, since within a handler's
    transaction it would take a second connection.
    """
    with _engine.get().connect() as connection:
        own = connection.scalar(text("SHOW synchronous_commit"))
    return _relaxed_engine.get().execution_options(**{_OWN_WAIT: own})


def wait_when_committing(session: Session, bind: Engine | Connection) -> None:
    """Make the transaction of a handler's relaxed session wait after all; harmless for others.

    Args:
        session: in a transaction.
        bind: what it is bound to.
    """
    if own := bind.get_execution_options().get(_OWN_WAIT):
        session.connection().execute(
            text("SELECT set_config('synchronous_commit', :own, true)"), {"own": own}
        )


def lacks_tables(error: DBAPIError) -> bool:
    """Whether a statement failed because the tables are missing, or old."""
    return isinstance(
        error.orig, errors.UndefinedTable | errors.UndefinedColumn | errors.InvalidSchemaName
    )


@contextmanager
def explained() -> Iterator[None]:
    """Turn the errors that a person can fix into sentences.

    Raises:
        DatabaseAway: PostgreSQL cannot be reached, refuses the user, or accepts no writes; or all
            connections of this process are in use.
        SchemaMissing: it has no cos-events tables, or old ones.
    """
    url = mask(get_settings().database_url)
    try:
        yield
    except OperationalError as error:
        raise DatabaseAway(
            f"PostgreSQL at {url} cannot be used: {one_line(error)}; "
            "check that it runs and that DATABASE_URL is right"
        ) from error
    except PoolTimeout as error:
        raise DatabaseAway(
            f"no connection to PostgreSQL at {url} is free: {one_line(error)}"
        ) from error
    except InternalError as error:
        if isinstance(error.orig, errors.ReadOnlySqlTransaction):
            raise DatabaseAway(f"PostgreSQL at {url} {READ_ONLY}") from error
        raise
    except ProgrammingError as error:
        if getattr(error.orig, "pgcode", None) is None:
            # It was never asked: the driver does not understand the URL.
            shown = outline(get_settings().database_url)
            raise DatabaseAway(
                f"DATABASE_URL={shown!r} cannot be used: {one_line(error)}"
            ) from error
        if isinstance(error.orig, errors.InsufficientPrivilege):
            raise DatabaseAway(
                f"PostgreSQL at {url} refuses: {one_line(error)}; "
                "docs/deployment.md says what each role needs"
            ) from error
        if not lacks_tables(error):
            raise
        raise SchemaMissing(
            f"the database at {url} lacks cos-events tables, or has old ones: "
            "run `cos-events db upgrade`"
        ) from error


def wait_at_most(connection: Connection, milliseconds: int) -> None:
    """Bound the wait for a locked row until the transaction ends, or its SAVEPOINT is rolled back.

    A SAVEPOINT that is released leaves the bound in force.
    """
    connection.execute(text(f"SET LOCAL lock_timeout = {int(milliseconds)}"))


def reset() -> None:
    """Close this process's engines; the next use reads `DATABASE_URL` again."""
    for each in (_engine, _autocommit_engine, _relaxed_engine, _watching_engine):
        if (engine := each.reset()) is not None:
            engine.dispose()
