"""The application of a fault run: `python -m cos_events.faults.load FOLDER SEED RATE`.

Records events in small transactions, some rolled back, some with SAVEPOINTs, and writes each
outcome into its journal. Goes on where it was when it is killed and started again; ends by SIGTERM.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from pathlib import Path
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cos_events import record_event
from cos_events.faults.processes import note_ready
from cos_events.faults.truth import SUBSCRIPTIONS, Journal, Transaction, note_recorded
from cos_events.store.engine import get_engine

GO = "go"
"""The file that the application waits for: an event before the first subscription is nobody's."""


def main(folder: Path, seed: int, rate: float) -> None:
    """Record about `rate` events a second, each second's as fast as can be."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    journal = Journal(folder / "journal")
    journal.read()
    number = max((each.number for each in journal.transactions), default=0)
    note_ready(folder)
    while not ((folder / GO).exists() or stopping.wait(0.05)):
        pass
    started, recorded = time.monotonic(), 0
    while not stopping.is_set():
        if recorded >= rate * (1 + int(time.monotonic() - started)):
            stopping.wait(0.02)
            continue
        number += 1
        transaction = run(number, random.Random(f"{seed}/{number}"))  # noqa: S311 - repeatable
        journal.write(transaction)
        recorded += len(transaction.events)
        if transaction.outcome == "failed":
            stopping.wait(0.1)


def run(number: int, rng: random.Random) -> Transaction:
    """One transaction, whose shape is drawn from `rng`."""
    kept: list[UUID] = []
    began_at, seconds, outcome = time.time(), 0.0, "failed"
    try:
        with Session(get_engine()) as session:
            kept += _record(session, rng, rng.randint(1, 4))
            if rng.random() < 0.3:
                kept += _in_savepoint(session, rng)
            rolled_back = rng.random() < 0.1
            began_at, began = time.time(), time.perf_counter()
            if rolled_back:
                session.rollback()
            else:
                session.commit()
            seconds = time.perf_counter() - began
            outcome = "rolled back" if rolled_back else "committed"
    except SQLAlchemyError:
        seconds = time.time() - began_at
    return Transaction(number, outcome, [str(each) for each in kept], began_at, seconds)


def _in_savepoint(session: Session, rng: random.Random) -> list[UUID]:
    """Events that a SAVEPOINT keeps, or undoes; sometimes with another inside."""
    savepoint = session.begin_nested()
    recorded = _record(session, rng, rng.randint(1, 2))
    if rng.random() < 0.3:
        recorded += _in_savepoint(session, rng)
    if rng.random() < 0.5:
        savepoint.rollback()
        return []
    savepoint.commit()
    return recorded


def _record(session: Session, rng: random.Random, count: int) -> list[UUID]:
    ids = [record_event(session, "event_log", _data(rng)) for _ in range(count)]
    note_recorded(session, ids)
    return ids


def _data(rng: random.Random) -> dict[str, object]:
    data: dict[str, object] = {"text": "x" * rng.randint(1, 400)}
    if rng.random() < 0.05:
        data["failures"] = {rng.choice(SUBSCRIPTIONS): rng.randint(1, 2)}
    return data


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
