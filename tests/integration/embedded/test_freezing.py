"""What is frozen stands still for a while, and nothing else does."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from cos_events.embedded.process import frozen

from .conftest import ROOT, eventually


@pytest.fixture
def family() -> Iterator[list[psutil.Process]]:
    """A process that leads a group, and its child."""
    code = "sleep 60 & echo $!; wait"
    with subprocess.Popen(
        ["sh", "-c", code], stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout
        yield [psutil.Process(leader.pid), psutil.Process(int(leader.stdout.readline()))]
        os.killpg(leader.pid, signal.SIGKILL)


def stopped(family: list[psutil.Process]) -> list[bool]:
    return [each.status() == psutil.STATUS_STOPPED for each in family]


def test_a_process_stands_still_alone_by_its_number_and_with_its_group_by_a_minus(
    family: list[psutil.Process],
) -> None:
    pid = family[0].pid
    for number, expected in ((pid, [True, False]), (-pid, [True, True])):
        with frozen(number):
            eventually(lambda expected=expected: stopped(family) == expected)
        eventually(lambda: stopped(family) == [False, False])


def test_one_that_has_ended_is_left_out_and_the_callers_own_group_is_never_frozen() -> None:
    code = """
import subprocess
from cos_events.embedded.process import frozen
gone = subprocess.Popen(["true"])
gone.wait()
with frozen(None, gone.pid):
    print("goes on")
"""
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        timeout=30,
        start_new_session=True,
        check=True,
    )
    assert said.stdout == b"goes on\n"
