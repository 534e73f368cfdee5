"""What is said about an error, in the ledger, on a page and in the log."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from psycopg2 import errors
from sqlalchemy.exc import DBAPIError, OperationalError

from cos_events.printable import printable

MAX_LENGTH = 2_000
"""The most characters of an error that are kept."""

_ABOUT_NAMES = {"3F000", "42P01", "42703", "42883"}
"""What PostgreSQL does not know: the message says which schema, table, column or function."""


def one_line(error: object) -> str:
    """An error's own text, for a sentence of ours; the name of its class if it has none.

    For a database error the driver's text, without SQLAlchemy's around it.
    """
    said = error.orig if isinstance(error, DBAPIError) else error
    # libpq's advice is on separate lines, which begin with a tab.
    lines = (line for line in str(said).splitlines() if not line.startswith("\t"))
    return " ".join(" ".join(lines).split()) or type(said).__name__


def describe(error: BaseException) -> str:
    """An error's type and text, fit to be kept and shown.

    For a database error only what contains no values, since its text quotes them: the condition,
    its SQLSTATE, and names from the schema. What PostgreSQL cannot store, and what a terminal would
    obey, is escaped; its lines stay.
    """
    try:
        text = _condition(error) if isinstance(error, DBAPIError) else str(error)
    except Exception as unreadable:  # noqa: BLE001 - an exception of somebody else's
        text = f"its text cannot be read ({type(unreadable).__name__})"
    clean = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    lines = "\n".join(map(printable, clean.split("\n")))
    return f"{type(error).__name__}: {lines}"[:MAX_LENGTH]


def _condition(error: DBAPIError) -> str:
    """For example: `UniqueViolation (SQLSTATE 23505), table shop.orders, constraint orders_pkey`.

    Args:
        error: of whichever driver.
    """
    raised: Any = error.orig
    code = getattr(raised, "sqlstate", None) or getattr(raised, "pgcode", None)
    if code is None:
        driver = type(raised).__module__
        if isinstance(error, OperationalError) and driver.startswith("psycopg"):
            # From the connection, which carries no value yet, or no longer does.
            return one_line(error)
        return f"{driver}.{type(raised).__name__}, without an SQLSTATE"
    text = f"SQLSTATE {code}"
    with suppress(KeyError):
        text = f"{errors.lookup(code).__name__} ({text})"
    diagnosis = getattr(raised, "diag", None)

    def part(name: str) -> str:
        return getattr(diagnosis, name, None) or ""

    if code in _ABOUT_NAMES and (message := part("message_primary")):
        text += f": {message}"
    table = ".".join(filter(None, (part("schema_name"), part("table_name"))))
    named = {"table": table, "column": part("column_name"), "constraint": part("constraint_name")}
    return ", ".join([text, *(f"{what} {name}" for what, name in named.items() if name)])
