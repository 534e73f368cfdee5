"""What a person has corrected is what runs, whichever copy of the event comes first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from cos_events import Envelope
from cos_events.store import deliveries
from cos_events.store.models import AT_ONCE, OutboxRow


@pytest.fixture
def correct(database: Engine) -> Callable[[str, str], str]:
    """Correct an event that failed, which then runs again; returns the copy that is sent."""

    def of(name: str, raw: str) -> str:
        event_id, corrected = Envelope.decode(raw).base_log_id, raw.replace("wrong", "right")
        row = {"subscription": name, "state": "retrying", "attempts": 0, "next_attempt_at": AT_ONCE}
        with database.begin() as connection:
            connection.execute(
                deliveries.from_outbox(
                    {**row, "correction": corrected}, OutboxRow.event_id == event_id
                )
            )
        return corrected

    return of


@pytest.mark.parametrize("kind", ["plain", "with the session", "a batch", "a batch with it"])
def test_a_late_copy_of_the_original_runs_as_it_was_corrected(
    bus: Any, correct: Callable[[str, str], str], kind: str
) -> None:
    ran: list[object] = []

    def note(message: Envelope) -> None:
        ran.append(message.data["text"])

    def note_within(message: Envelope, session: Session) -> None:
        note(message)

    def note_all(messages: list[Envelope]) -> None:
        ran.extend(each.data["text"] for each in messages)

    def note_all_within(messages: list[Envelope], session: Session) -> None:
        note_all(messages)

    name = {
        "plain": lambda: bus.declare(note),
        "with the session": lambda: bus.declare(note_within),
        "a batch": lambda: bus.declare(note_all, batch_size=9),
        "a batch with it": lambda: bus.declare(note_all_within, batch_size=9),
    }[kind]()
    raw, other = bus.record(text="wrong"), bus.record(text="other")
    corrected = correct(name, raw)
    bus.run(name, raw, other, corrected)
    bus.run(name, corrected)
    bus.run(name, raw)
    assert ran == ["right", "other"]
    assert (bus.state(name, raw), bus.state(name, other)) == ("delivered", "delivered")


def test_an_original_that_comes_alone_runs_as_it_was_corrected(
    bus: Any, correct: Callable[[str, str], str]
) -> None:
    ran: list[object] = []
    name = bus.declare(lambda message: ran.append(message.data["text"]))
    raw = bus.record(text="wrong")
    correct(name, raw)
    bus.run(name, raw)
    assert ran == ["right"]
