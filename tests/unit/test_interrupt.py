"""Ctrl-C leaves nothing, whenever it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cos_events.cli.interrupt import temporary_folder


def test_a_temporary_folder_is_private_and_goes_with_all_that_is_in_it(place: Path) -> None:
    with temporary_folder("ours-") as folder:
        assert list(place.glob("ours-*")) == [folder]
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "log").write_text("said")
    assert list(place.iterdir()) == []


def test_ctrl_c_between_the_making_of_the_folder_and_its_first_use_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path, mode: int) -> None:
        made(folder, mode)
        raise KeyboardInterrupt

    made = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", make)
    with pytest.raises(KeyboardInterrupt), temporary_folder("ours-"):
        pytest.fail("the body ran")
    assert list(place.iterdir()) == []


def interrupted(body: str) -> subprocess.CompletedProcess[str]:
    """A program whose body interrupts itself while it cleans up after itself."""
    program = f"""
import logging, os, signal, time
from cos_events.cli.interrupt import cleaning_up

def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)

{body}
"""
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )


def test_an_interrupt_is_not_raised_in_a_destructor_and_other_errors_of_those_are_shown() -> None:
    ended = interrupted("""
class Interrupted:
    def __del__(self):
        interrupt()
        print("it goes on", flush=True)

class Wrong:
    def __del__(self):
        raise ValueError("of a destructor")

with cleaning_up():
    Wrong()
    Interrupted()
    time.sleep(60)
""")
    assert ended.returncode == -signal.SIGINT
    assert ended.stdout == "it goes on\n"
    swallowed, _, ending = ended.stderr.partition("ValueError: of a destructor\n")
    assert swallowed.startswith("Exception ignored in: <function Wrong.__del__")
    # How Python ends a program; where click runs it, that says "Aborted!".
    assert ending.startswith("Traceback")
    assert ending.endswith("KeyboardInterrupt\n")
    assert "Exception ignored" not in ending


def test_an_interrupt_that_is_swallowed_comes_again() -> None:
    ended = interrupted("""
with cleaning_up():
    try:
        interrupt()
    except KeyboardInterrupt:
        print("swallowed", flush=True)
    time.sleep(60)
""")
    assert (ended.returncode, ended.stdout) == (-signal.SIGINT, "swallowed\n")


@pytest.mark.parametrize(
    ("patience", "said"), [("pass", "logged\n"), ("time.sleep(30)", "")], ids=["short", "long"]
)
def test_an_interrupt_within_logging_waits_for_its_end_but_not_for_long(
    patience: str, said: str
) -> None:
    ended = interrupted(f"""
class Handler(logging.Handler):
    def emit(self, record):
        interrupt()
        {patience}
        print("logged", flush=True)

with cleaning_up():
    logging.getLogger().addHandler(Handler())
    logging.error("now")
    time.sleep(60)
""")
    assert (ended.returncode, ended.stdout) == (-signal.SIGINT, said)


def test_an_interrupt_while_coverage_is_measured_leaves_its_lock_free() -> None:
    # Every call of a traced line may take this lock: left held, it hangs all threads for good.
    ended = interrupted("""
import threading
import types
from coverage.collector import Collector

class Lock:
    def __init__(self):
        self.lock = threading.Lock()
        self.release = self.lock.release
    def acquire(self):
        self.lock.acquire()
        interrupt()

collector = types.SimpleNamespace(data_lock=Lock())
with cleaning_up():
    try:
        Collector.lock_data(collector)
        Collector.unlock_data(collector)
        time.sleep(60)
    finally:
        print("held" if collector.data_lock.lock.locked() else "free", flush=True)
""")
    assert (ended.returncode, ended.stdout) == (-signal.SIGINT, "free\n")
