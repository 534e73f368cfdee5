"""What is kept and shown of an error, as PostgreSQL raises it."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from cos_events.error_text import describe, one_line

SECRET = "hunter2"


@pytest.fixture
def shop(database: Engine) -> Engine:
    """The database, with a table of an application's own."""
    with database.begin() as connection:
        connection.execute(text("CREATE SCHEMA shop"))
        connection.execute(
            text("CREATE TABLE shop.orders (id smallint PRIMARY KEY, name text NOT NULL)")
        )
        connection.execute(text("INSERT INTO shop.orders VALUES (1, 'first')"))
    return database


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "INSERT INTO shop.orders VALUES (1, 'hunter2')",
            (
                "IntegrityError: UniqueViolation (SQLSTATE 23505), table shop.orders, "
                "constraint orders_pkey"
            ),
        ),
        (
            "INSERT INTO shop.orders VALUES (2, NULL)",
            "IntegrityError: NotNullViolation (SQLSTATE 23502), table shop.orders, column name",
        ),
        (
            "SELECT 'hunter2' FROM shop.o",
            'ProgrammingError: UndefinedTable (SQLSTATE 42P01): relation "shop.o" does not exist',
        ),
        (
            "SELECT nome FROM shop.orders WHERE name = 'hunter2'",
            'ProgrammingError: UndefinedColumn (SQLSTATE 42703): column "nome" does not exist',
        ),
        (
            "SELECT CAST('hunter2' AS integer)",
            "DataError: InvalidTextRepresentation (SQLSTATE 22P02)",
        ),
        (
            "DO $$ BEGIN RAISE EXCEPTION 'hunter2' USING ERRCODE = 'SHOP1'; END $$",
            "DatabaseError: SQLSTATE SHOP1",
        ),
    ],
)
def test_of_a_database_error_it_is_the_condition_and_names_and_no_value(
    shop: Engine, statement: str, expected: str
) -> None:
    with shop.connect() as connection, pytest.raises(DBAPIError) as raised:
        connection.execute(text(statement))
    assert describe(raised.value) == expected


def test_an_error_of_the_driver_itself_names_its_class(database: Engine) -> None:
    with database.connect() as connection, pytest.raises(DBAPIError) as raised:
        connection.execute(text("SELECT :value"), {"value": object()})
    assert describe(raised.value) == (
        "ProgrammingError: psycopg2.ProgrammingError, without an SQLSTATE"
    )


def test_another_driver_may_say_no_more_than_the_sqlstate() -> None:
    class UniqueViolationError(Exception):
        """As asyncpg's: its attribute is `sqlstate`, and there is no `diag`."""

        sqlstate = "23505"

    error = IntegrityError("INSERT", {}, UniqueViolationError(SECRET))
    assert describe(error) == "IntegrityError: UniqueViolation (SQLSTATE 23505)"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("refused"), "refused"),
        (ValueError("first line\n  and a second\n"), "first line and a second"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_the_words_of_an_error_are_one_line_and_never_none(error: Exception, words: str) -> None:
    assert one_line(error) == words


def test_of_a_server_that_is_away_they_are_the_drivers_without_its_advice() -> None:
    with pytest.raises(DBAPIError) as raised:
        create_engine("postgresql+psycopg2://127.0.0.1:1/none").connect()
    words = 'connection to server at "127.0.0.1", port 1 failed: Connection refused'
    assert one_line(raised.value) == words
    assert describe(raised.value) == f"OperationalError: {words}"
