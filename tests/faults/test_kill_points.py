"""Kill points: they are where their names say, and kill whom they shall, only when armed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cos_events.faults.kill_points import KILL_POINTS, Trigger
from cos_events.faults.processes import FOLDER, PARENT, make_folders

ROOT = Path(__file__).parents[2]

SETTLES = """
import os
from cos_events.store import deliveries, outbox
try:
    deliveries.settle()
except TypeError:
    print("settled nothing", flush=True)
try:
    outbox.claim()
except TypeError:
    print("claimed nothing", flush=True)
"""
"""A program that comes to `publisher.before_claim`, and past `subscriber.after_settle`."""


@pytest.fixture
def trigger(tmp_path: Path) -> Trigger:
    made = Trigger(tmp_path)
    made.make_folders()
    make_folders(tmp_path)
    return made


@pytest.fixture
def run(tmp_path: Path) -> Callable[[], subprocess.CompletedProcess[str]]:
    """Run the program as every process of a fault run."""

    def start() -> subprocess.CompletedProcess[str]:
        (tmp_path / "settles.py").write_text(SETTLES)
        return subprocess.run(
            [sys.executable, "-m", "cos_events.faults.entry", "settles"],
            env={
                **os.environ,
                FOLDER: str(tmp_path),
                PARENT: str(os.getpid()),
                "PYTHONPATH": f"{tmp_path}:{ROOT}",
            },
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            start_new_session=True,
        )

    return start


@pytest.mark.parametrize("name", KILL_POINTS)
def test_the_functions_of_each_kill_point_exist(name: str) -> None:
    for owner, attribute in KILL_POINTS[name].find():
        assert callable(getattr(owner, attribute))
        assert not hasattr(getattr(owner, attribute), "__wrapped__"), "the product itself has none"


def test_a_process_dies_at_an_armed_point_and_passes_it_unarmed(
    trigger: Trigger, run: Callable[[], subprocess.CompletedProcess[str]]
) -> None:
    trigger.arm("subscriber.after_settle", "process")
    trigger.arm("publisher.before_claim", "process")
    died = run()
    assert (died.returncode, died.stdout) == (-signal.SIGKILL, "settled nothing\n")
    shot = trigger.fired("publisher.before_claim")
    assert shot is not None
    assert shot.pid == shot.group
    assert trigger.fired("subscriber.after_settle") is None, "it raised, so it never got there"
    trigger.disarm("subscriber.after_settle")
    lived = run()
    assert (lived.returncode, lived.stdout) == (0, "settled nothing\nclaimed nothing\n")
    assert trigger.reached() == {"publisher.before_claim"}


def test_an_armed_point_kills_one_process_only_and_arming_again_forgets_the_shot(
    trigger: Trigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    monkeypatch.setattr(os, "killpg", lambda group, number: killed.append((group, number)))
    point = trigger._wrap(lambda: "done", "relay.after_send", after=True)
    trigger.arm("relay.after_send", "process")
    assert [point(), point()] == ["done", "done"]
    assert killed == [(os.getpid(), signal.SIGKILL)]
    trigger.arm("relay.after_send", "group")
    assert trigger.fired("relay.after_send") is None
    point()
    assert killed[1] == (0, signal.SIGKILL)
