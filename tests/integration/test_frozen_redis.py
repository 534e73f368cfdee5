"""A frozen Redis, as broker and as channel, costs a committing application nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from cos_events import dispatcher, record_event
from cos_events.cli.processes import check_alive, running, worker
from cos_events.embedded import EmbeddedValkey

COMMITS = 200
FROZEN_SECONDS = 10.0
APP = "tests.apps.busapp"


@pytest.fixture
def prefix(
    database: Engine,
    valkey: EmbeddedValkey,
    environment: Callable[..., None],
    unique: Callable[[str], str],
) -> str:
    """Everything is on the test's own Valkey."""
    name = unique("frozen")
    environment(
        REDIS_URL=valkey.url,
        BROKER_URL=valkey.url,
        BUSAPP_PREFIX=name,
        COS_EVENTS_MODULE=name,
        PYTHONPATH=str(Path(__file__).parents[2]),
    )
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE effect (kind text, event_id uuid, pid int)"))
    return name


@pytest.fixture
def frozen(valkey: EmbeddedValkey) -> AbstractContextManager[float]:
    """Within it Valkey keeps its connections and answers nothing; gives when that began."""
    assert valkey.pid
    pid = valkey.pid

    @contextmanager
    def freeze() -> Iterator[float]:
        os.kill(pid, signal.SIGSTOP)
        try:
            yield time.monotonic()
        finally:
            os.kill(pid, signal.SIGCONT)

    return freeze()


def commit(engine: Engine) -> float:
    """One transaction with one event; returns the seconds that its COMMIT took."""
    with Session(engine) as session:
        record_event(session, "event_log", {"text": "x" * 200})
        session.flush()
        started = time.perf_counter()
        session.commit()
        return time.perf_counter() - started


def delivered(engine: Engine) -> tuple[int, int]:
    """How many events had their effect, and how many effects there were."""
    with engine.connect() as connection:
        found = text("SELECT count(DISTINCT event_id), count(*) FROM effect WHERE kind = 'session'")
        return tuple(connection.execute(found).one())


def test_with_redis_frozen_for_ten_seconds_every_commit_is_quick_and_delivered_afterwards(
    database: Engine,
    prefix: str,
    frozen: AbstractContextManager[float],
    tmp_path: Path,
    eventually: Callable[..., None],
) -> None:
    specs = [
        worker("publisher", "publisher", "-A", APP),
        worker("subscriber", "subscriber", f"{prefix}_session", "-A", APP),
    ]
    with running(tmp_path, specs) as started:
        up = [commit(database) for _ in range(COMMITS)]
        eventually(lambda: delivered(database) == (COMMITS, COMMITS))
        assert dispatcher.counts() == (COMMITS, 0)

        with frozen as since:
            down = [commit(database) for _ in range(COMMITS)]
            eventually(lambda: time.monotonic() - since >= FROZEN_SECONDS, 2 * FROZEN_SECONDS)
            assert delivered(database)[0] < 2 * COMMITS, "it was not frozen"

        assert max(down) < max(up) + 1.0, "far below any socket's timeout"
        eventually(lambda: delivered(database)[0] == 2 * COMMITS)
        assert delivered(database) == (2 * COMMITS, 2 * COMMITS)
        check_alive(started)
    eventually(lambda: sum(dispatcher.counts()) == 2 * COMMITS)
    assert dispatcher.counts()[1] > 0, "what was not sent is counted"
