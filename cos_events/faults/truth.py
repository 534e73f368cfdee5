"""What really happened, written by the application and its handlers past the bus."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from cos_events.envelope import Envelope
from cos_events.store.engine import get_engine

MODULE = "faults"
"""The source module of all that a run records."""

EXACTLY_ONCE = ("exactly_once", "in_batches")
"""The subscriptions of a run whose handlers take the session."""

SUBSCRIPTIONS = (*EXACTLY_ONCE, "at_least_once")

TABLES = (
    "CREATE SCHEMA faults",
    # In the transaction of the events themselves: whatever the application could not learn of a
    # commit that was cut off, this has it.
    "CREATE TABLE faults.recorded (event_id uuid PRIMARY KEY)",
    # Without a unique constraint, so that a double effect shows.
    "CREATE TABLE faults.effect (subscription text, event_id uuid)",
    "CREATE INDEX ON faults.effect (subscription, event_id)",
    "CREATE TABLE faults.failure (subscription text, event_id uuid)",
)


def make_tables(connection: Connection) -> None:
    """Make the tables of a run, beside the bus's own."""
    for statement in TABLES:
        connection.execute(text(statement))


def note_recorded(session: Session, event_ids: Iterable[UUID]) -> None:
    """Write, in the session's transaction, that it records these events."""
    rows = [{"event_id": each} for each in event_ids]
    session.execute(text("INSERT INTO faults.recorded VALUES (:event_id)"), rows)


def note_effect(
    executor: Connection | Session, subscription: str, messages: Sequence[Envelope]
) -> None:
    """Write that a handler has done its work for these events."""
    executor.execute(
        text("INSERT INTO faults.effect VALUES (:subscription, :event_id)"),
        [{"subscription": subscription, "event_id": each.base_log_id} for each in messages],
    )


def fail_at_first(subscription: str, message: Envelope) -> None:
    """Raise as often as the event asks for at this subscription, then no more."""
    wanted = message.data.get("failures")
    times = wanted.get(subscription) if isinstance(wanted, dict) else None
    if not isinstance(times, int):
        return
    key = {"subscription": subscription, "event_id": message.base_log_id}
    with get_engine().begin() as connection:
        before: int = connection.scalar(
            text(
                "SELECT count(*) FROM faults.failure"
                " WHERE subscription = :subscription AND event_id = :event_id"
            ),
            key,
        )
        if before >= times:
            return
        connection.execute(
            text("INSERT INTO faults.failure VALUES (:subscription, :event_id)"), key
        )
    raise ConnectionError(f"failure {before + 1} of {times}, on purpose")


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction of the application, as that saw it end.

    Attributes:
        number: which.
        outcome: `committed`, `rolled back`, or `failed`: then nobody knows but PostgreSQL.
        events: the ids of what it recorded and did not undo.
        began_at: when COMMIT was called, in seconds since the epoch.
        seconds: how long that took, with flush, capture and hand-over.
    """

    number: int
    outcome: str
    events: list[str]
    began_at: float
    seconds: float


class Journal:
    """A file of transactions, appended by the application and read by others meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.transactions: list[Transaction] = []
        self.committed = 0

    def write(self, transaction: Transaction) -> None:
        """Append one; a process that is killed then has left it whole, or not at all."""
        with self._path.open("ab", buffering=0) as file:
            file.write(json.dumps(asdict(transaction)).encode() + b"\n")

    def read(self) -> None:
        """Take in what has been appended since."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for line in whole.splitlines():
            transaction = Transaction(**json.loads(line))
            self.transactions.append(transaction)
            if transaction.outcome == "committed":
                self.committed += len(transaction.events)
