"""`cos-events faults`: a short run with everything in it, and what the command leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from leftovers import of_this_test

from cos_events.cli import faults, main
from cos_events.embedded import own_folder
from cos_events.errors import CosEventsError
from cos_events.faults import run
from cos_events.faults.books import Books
from cos_events.faults.kill_points import KILL_POINTS
from cos_events.faults.report import Happened, Report
from cos_events.faults.truth import Transaction

ROOT = Path(__file__).parents[2]
KINDS = ["relay.before_send", "feeder.after_hold", "broker.restart", "postgres.crash", "child.kill"]


def command(*args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cos_events", "faults", *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_short_run_on_redis_loses_and_doubles_nothing_and_comes_to_every_kill_point(
    place: Path, eventually: Callable[..., None]
) -> None:
    options = ["--events", 120, "--rate", 15, "--seed", 5, "--faults", len(KINDS)]
    kinds = [word for name in KINDS for word in ("--kind", name)]
    process = command(*options, *kinds, "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    found = json.loads(out)
    assert (found["missing"], found["double_effects"]) == (0, 0)
    assert found["rolled_back_but_delivered"] == 0
    assert found["committed"] >= 120
    assert found["transactions"]["rolled back"] > 0
    assert (found["kinds"], found["kinds_not_hit"]) == (dict.fromkeys(KINDS, 1), [])
    assert set(found["kill_points_reached"]) == set(KILL_POINTS)
    assert found["repeat"] == " ".join(
        map(str, ["cos-events faults --broker redis", *options, *kinds])
    )
    assert found["postgresql_away_seconds"] > 0
    # What was killed may take a moment until it is gone.
    eventually(lambda: of_this_test(place) == [])
    assert list(place.iterdir()) == []


def test_ctrl_c_stops_everything_and_leaves_nothing(
    place: Path, eventually: Callable[..., None]
) -> None:
    process = command("--events", 100)
    eventually(lambda: list(place.glob("*/application.log")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in err
    eventually(lambda: of_this_test(place) == [])
    assert sorted(place.rglob("*")) == [], err


def test_what_a_killed_run_left_behind_ends_with_the_next(
    place: Path, eventually: Callable[..., None]
) -> None:
    process = command("--events", 100)
    eventually(lambda: list(place.glob("*/application.log")))
    process.kill()
    process.communicate()
    programs = {each.name() for each in of_this_test(place)}
    assert {"postgres", "valkey-server"} <= programs
    with own_folder() as home:
        assert list(place.iterdir()) == [home.path]
    eventually(lambda: of_this_test(place) == [])
    assert list(place.iterdir()) == []


def test_a_kind_that_does_not_exist_is_told_with_those_that_do() -> None:
    result = CliRunner().invoke(main, ["faults", "--kind", "broker.explode"])
    assert result.exit_code == 2
    assert "no kind of fault with redis: broker.explode" in result.output
    assert "broker.freeze" in result.output


def test_a_folder_that_is_there_already_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CosEventsError, match="exists: name a new folder"), own_folder(tmp_path):
        pass
    assert tmp_path.exists()


@pytest.fixture
def told(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, Path]]:
    """The exit code and output of a command whose run ends with this report, and its folder."""

    def tell(report: Report, *options: str) -> tuple[int, str, Path]:
        paths: list[Path] = []

        class Run:
            def __init__(self, folder: Path, *_: Any, on_fault: Any, on_progress: Any, **__: Any):
                paths.append(folder)
                on_progress("committing", 1, 2)
                for each in report.happened:
                    on_fault(each)

            def run(self) -> Report:
                return report

        monkeypatch.setattr(run, "FaultRun", Run)
        # In this process the handlers of signals are pytest's.
        monkeypatch.setattr(faults, "cleaning_up", nullcontext)
        result = CliRunner().invoke(main, ["faults", "--seed", "3", *options])
        return result.exit_code, " ".join(result.output.split()), paths[0]

    return tell


def a_report(**found: Any) -> Report:
    account = Books("exactly_once", True, 1_234, 1_234, 0, 0, 0)
    return Report(
        **{
            "transactions": [Transaction(1, "committed", ["a"], 0.0, 0.0123)],
            "happened": [Happened("child.kill", 9, 10, 1.5, 0.1, 3, "a child of subscriber-1")],
            "accounts": [account],
            "dead": 0,
            "lost_by_postgres": 0,
            "postgres_away": [],
            "restarts": 2,
            "ended": ["publisher-1: the end"],
            "reached": set(),
            "settled_after": 1.25,
            "unsettled": [],
            "seconds": 60.0,
            **found,
        }
    )


def test_a_good_run_is_told_fault_by_fault_with_the_command_that_repeats_it(
    told: Callable[..., tuple[int, str, Path]],
) -> None:
    code, output, folder = told(a_report(), "--kind", "child.kill", "--kind", "broker.cut")
    assert code == 0
    for sentence in (
        "1.5 s 10 child.kill a child of subscriber-1 0.1 s 3",
        "exactly_once exactly once 1,234 1,234 0 0",
        "longest commit 12.3 ms",
        "1 of 2 kinds have hit",
        "not hit broker.cut",
        "ended by itself publisher-1: the end",
        "missing 0",
        "double effects 0",
        "repeat cos-events faults --broker redis --events 5000 --seed 3 --faults 10 --kind",
    ):
        assert sentence in output
    assert not folder.exists()


def test_a_bad_run_says_what_it_found_keeps_its_logs_and_ends_with_1(
    told: Callable[..., tuple[int, str, Path]],
) -> None:
    missing = Books("at_least_once", False, 10, 8, 2, 0, 1)
    report = a_report(
        accounts=[missing],
        dead=1,
        lost_by_postgres=1,
        unsettled=["at_least_once has not received 2"],
    )
    code, output, folder = told(report)
    assert code == 1
    for sentence in (
        "not settled at_least_once has not received 2",
        "dead letters 1",
        "lost by PostgreSQL 1",
        "missing 2",
        "rolled back but delivered 1",
        f"data and logs stay in {folder}",
    ):
        assert sentence in output
    assert folder.exists()
    with own_folder():
        assert folder.exists(), "a folder that stays is no leftover"
