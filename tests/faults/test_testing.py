"""What users' own tests import: the example of `docs/testing.md`, as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from cos_events import record_event
from cos_events.dead_letters import replaying
from cos_events.errors import CosEventsError
from cos_events.faults.kill_points import KILL_POINTS
from cos_events.store.dead_letters import Filter
from cos_events.store.models import DeliveryRow, OutboxRow, SubscriptionRow
from cos_events.testing import EventBus

PAGE = (Path(__file__).parents[2] / "docs/testing.md").read_text()


def test_the_example_of_the_page_passes(tmp_path: Path) -> None:
    ended = run_example(tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_subscription_that_was_not_started_is_not_waited_for(tmp_path: Path) -> None:
    first = '@subscriber("stock"'
    another = f'subscriber("bills")(lambda message: None)\n\n\n{first}'
    ended = run_example(tmp_path, (first, another))
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_wait_in_vain_says_why_the_handler_failed(tmp_path: Path) -> None:
    ended = run_example(tmp_path, ("wait()", "wait(10)"), ("INTO taken", "INTO taken_elsewhere"))
    assert ended.returncode == 1
    expected = (
        r"stock: 0 of \d+, the last failure: ProgrammingError: UndefinedTable \(SQLSTATE 42P01\): "
        r'relation "taken_elsewhere" does not exist'
    )
    assert re.search(expected, ended.stdout), ended.stdout


def test_a_purged_dead_letter_is_not_waited_for(database: Engine) -> None:
    with Session(database) as session, session.begin():
        event_id = record_event(session, "order_placed", {})
        session.flush()
        outbox_id = session.scalars(select(OutboxRow.id)).one()
        letter = {"event_id": event_id, "outbox_id": outbox_id, "state": "dead", "attempts": 1}
        session.add_all(
            [SubscriptionRow(name="stock"), DeliveryRow(subscription="stock", **letter)]
        )
    assert replaying.purge(Filter("stock")) == [event_id]
    bench: Any = SimpleNamespace(engine=database, redis=None, broker=None, keep_alive=lambda: None)
    assert EventBus(bench).wait(0)["stock"].discarded == 1


def test_a_worker_that_is_not_there_is_a_sentence_though_there_is_none() -> None:
    bench: Any = SimpleNamespace(engine=None, redis=None, broker=None, processes={})
    with pytest.raises(CosEventsError, match="no worker 'publisher-9'; there are: none"):
        EventBus(bench).kill("publisher-9")


def run_example(folder: Path, *changes: tuple[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the page's own test, every warning an error, with these texts in place of others."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for name, block in zip(("shop.py", "conftest.py", "test_shop.py"), blocks, strict=True):
        for old, new in changes:
            block = block.replace(old, new)  # noqa: PLW2901 - the same block
        (folder / name).write_text(block)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_every_kill_point_stands_on_the_page() -> None:
    rows = re.findall(r"^\| (`\w+\.\w+`.*?) \|", PAGE.partition("## Kill points")[2], re.MULTILINE)
    named = []
    for row in rows:
        group = ""
        for name in re.findall(r"`([\w.]+)`", row):
            group = name.partition(".")[0] or group
            named.append(f"{group}.{name.partition('.')[2]}")
    assert named == list(KILL_POINTS)
