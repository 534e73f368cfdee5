"""`bench` measures all that it promises, on servers of its own, and leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cos_events.cli.bench.application import paced
from cos_events.cli.bench.figures import Bar, Figure, percentile

Cli = Callable[..., Result]


SHORT = """
import sys
from cos_events.cli import main
from cos_events.cli.bench import run
run.QUICK = run.Size(rounds=1, paced=0.5, drained=200, by_hand=20, sustained=1)
main(sys.argv[1:])
"""
"""As little as there can be of each measurement."""


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_short_run_has_every_figure_with_its_floor_and_leaves_nothing(
    place: Path, broker: str
) -> None:
    plot = place / "bench.svg"
    options = ["bench", "--quick", "--json", "--broker", broker, "--plot", str(plot)]
    ended = subprocess.run(
        [sys.executable, "-c", SHORT, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=360,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    figures = found["figures"]
    assert {"hook_us", "hook_frozen_us", "commit_to_channel_ms"} < figures.keys()
    assert all(each["value"] > 0 for key, each in figures.items() if "growth" not in key)
    assert all(figures[key]["ratio"] > 0 for key in ("hook_us", "commit_to_handler_ms"))
    assert figures["drain_batch_per_s"]["floor"] == figures["by_hand_per_s"]["value"]
    assert set(found["memory_mib"]) >= {"publisher", "bench_batch", "bench_single"}
    assert plot.read_text().startswith("<?xml")
    assert list(place.iterdir()) == [plot]


def test_a_plot_that_cannot_be_drawn_is_told_before_anything_is_measured(
    cli: Cli, sentence: Callable[[Result], str]
) -> None:
    assert (
        sentence(cli("bench", "--plot", "x.gif")) == "x.gif: a plot's name must end in .svg or .png"
    )


def test_calls_that_are_late_follow_at_once_until_their_time_is_over() -> None:
    called: list[int] = []

    def slow(number: int) -> None:
        called.append(number)
        time.sleep(0.01)

    assert paced(1_000, 0.02, slow) == 20
    assert called == list(range(20))
    called.clear()
    assert paced(1_000, 0.1, slow, until=0.1) == len(called) <= 11


def test_a_figure_is_the_median_and_reaches_its_bars_or_not() -> None:
    bars = (Bar("<=", 2, of_ratio=True), Bar("<=", 5))
    figure = Figure("k", "what", "ms", values=[3, 9, 4], floors=[2, 3, 4], bars=bars)
    assert (figure.value, figure.floor, figure.ratio) == (4, 3, 1.5)
    assert figure.met() is True
    assert Figure("k", "what", "ms", values=[6], floors=[6], bars=bars).met() is False
    assert Figure("k", "what", "ms", values=[1], bars=bars).met() is False
    assert Figure("k", "what", "/s", values=[7], bars=(Bar(">=", 7),)).met() is True
    assert Figure("k", "what", "/s", values=[7]).met() is None
    assert list(map(str, bars)) == ["<= 2 x floor", "<= 5"]


def test_a_percentile_is_a_value_that_was_there() -> None:
    assert percentile([5, 1, 2, 4, 3], 50) == 3
    assert percentile(list(range(100)), 95) == 95
    assert percentile([7], 99) == 7
