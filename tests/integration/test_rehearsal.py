"""A dry run ends as the delivery would, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from cos_events import Envelope
from cos_events.rehearsal import rehearse
from cos_events.subscribers import subscribers_of


@pytest.fixture
def effects(database: Engine) -> Iterator[Callable[[], int]]:
    """How many rows handlers have left; no two may be the same once a transaction ends."""
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE effect (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))

    def count() -> int:
        with database.connect() as connection:
            return connection.scalar(text("SELECT count(*) FROM effect")) or 0

    yield count
    with database.begin() as connection:
        connection.execute(text("DROP TABLE effect"))


def work(session: Session) -> None:
    session.execute(text("INSERT INTO effect VALUES (1)"))


def work_and(end: Callable[[Session], None]) -> Callable[[Session], None]:
    def both(session: Session) -> None:
        work(session)
        end(session)

    return both


def swallow(session: Session) -> None:
    with suppress(DBAPIError):
        session.execute(text("SELECT 1 / 0"))


@pytest.mark.parametrize(
    ("handle", "ending"),
    [
        (work, "delivered"),
        (work_and(lambda session: session.commit()), "Unsuccessful: the handler committed"),
        (work_and(lambda session: session.rollback()), "Unsuccessful: the handler ended"),
        (work_and(swallow), "Unsuccessful: the handler carried on after"),
        (work_and(work), "IntegrityError: "),
    ],
    ids=[
        "works",
        "commits",
        "rolls back",
        "goes on after an error",
        "breaks a deferred constraint",
    ],
)
def test_a_handler_ends_in_a_dry_run_as_in_earnest(
    bus: Any, effects: Callable[[], int], handle: Callable[[Session], None], ending: str
) -> None:
    name = bus.declare(lambda message, session: handle(session), max_retries=0)
    raw = bus.record()
    rehearsed = rehearse(subscribers_of(bus.app)[name], Envelope.decode(raw))
    assert rehearsed.startswith(ending)
    assert (effects(), bus.row(name, raw)) == (0, None)
    bus.run(name, raw)
    row = bus.row(name, raw)
    assert (row.error or row.state).removeprefix("retries exhausted: ") == rehearsed
    assert effects() == (rehearsed == "delivered")
