"""The work that is the same for every peer, in whichever environment it runs.

The application commits one row an event; the handler notes when it was called.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cos_events.cli.bench.marks import Marks

FOLDER = "PEERS_FOLDER"
"""The environment variable that names the folder with the marks."""

COMMITTED, HANDLED = "committed", "handled"
"""The files of the times at which events were committed, and their handlers called."""

TEXT = "x" * 200
"""About as much as a log line."""

DATABASE_URL = os.environ.get("DATABASE_URL", "")
"""Where the application commits, for SQLAlchemy with psycopg2."""

ASYNC_DATABASE_URL = DATABASE_URL.replace("+psycopg2", "+asyncpg")
"""The same for SQLAlchemy with asyncpg."""

PLAIN_DATABASE_URL = DATABASE_URL.replace("+psycopg2", "")
"""The same for drivers without SQLAlchemy."""

BROKER_URL = os.environ.get("BROKER_URL", "")
"""Where the peer has its messages, if it has them on a broker."""

ON_RABBITMQ = BROKER_URL.startswith("amqp")


class Base(DeclarativeBase):
    """The application's own tables."""


class Order(Base):
    """What the application commits."""

    __tablename__ = "peers_order"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    note: Mapped[str]


def order_of(number: int) -> Order:
    """The row of event number `number`."""
    return Order(number=number, note=TEXT)


def event_of(number: int) -> dict[str, Any]:
    """What is handed to the peer for it."""
    return {"number": number, "note": TEXT}


@cache
def marks(name: str) -> Marks:
    """The times of every event, shared with the processes of this run."""
    return Marks(Path(os.environ[FOLDER]) / name)


def handled(event: dict[str, Any]) -> None:
    """What every peer's handler does."""
    marks(HANDLED).put(event["number"])
