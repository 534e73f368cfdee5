"""The broker loses everything it held: nothing is missing afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from cos_events import broker, log_l1
from cos_events.cli.processes import running, worker
from cos_events.embedded import EmbeddedValkey
from cos_events.store.ledger import backlog, verify

EVENTS = 50

PUBLISHER = worker("publisher", "publisher")
SUBSCRIBERS = worker("subscribers", "subscriber", "activity", "graph_staging")


@pytest.fixture
def bus(
    database: Engine, valkey: EmbeddedValkey, environment: Callable[..., None], tmp_path: Path
) -> Engine:
    """COS's own subscriptions, known before the first event."""
    environment(
        REDIS_URL=valkey.url, BROKER_URL=valkey.url, COS_EVENTS_REDELIVER_AFTER="1", PYTHONPATH="."
    )
    with running(tmp_path, [SUBSCRIBERS]):
        pass
    return database


def test_copies_that_waited_in_queues_are_sent_again(
    bus: Engine, valkey: EmbeddedValkey, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    with running(tmp_path, [PUBLISHER]):
        with Session(bus) as session:
            for number in range(EVENTS):
                log_l1(
                    session,
                    "event_log",
                    {"level": "INFO", "component": "test", "message": str(number)},
                )
            session.commit()
        eventually(lambda: broker.queue_depths(["activity"]) == {"activity": EVENTS})
        valkey.stop()
        valkey.start()
        assert broker.queue_depths(["activity"]) in ({}, {"activity": 0})
        with running(tmp_path, [SUBSCRIBERS]):
            eventually(lambda: delivered(bus) == [EVENTS, EVENTS])
    with bus.connect() as connection:
        assert backlog(connection).rows == 0
        assert [each.missing for each in verify(connection, grace=0)] == [0, 0]


def delivered(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return [each.delivered for each in verify(connection, grace=0)]
