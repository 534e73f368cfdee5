"""Latencies and backlogs as a picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cos_events.errors import CosEventsError

if TYPE_CHECKING:
    from cos_events.cli.bench.run import Result


def check_can_plot(target: Path) -> None:
    """Say so before the measurements.

    Raises:
        CosEventsError: matplotlib is missing, or the file's name ends otherwise.
    """
    if target.suffix not in {".svg", ".png"}:
        raise CosEventsError(f"{target}: a plot's name must end in .svg or .png")
    if find_spec("matplotlib") is None:
        raise CosEventsError("matplotlib is missing: pip install 'cos-events[plot]'")


def draw(result: Result, target: Path) -> None:
    """Write the plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    latency, backlog = figure.subplots(1, 2)
    for name, style in (("floor", "--"), ("bus", "-")):
        found = result.latencies[name]
        for values, to in ((found.to_channel, "channel"), (found.to_handler, "handler")):
            ordered = sorted(values)
            share = [100 * (index + 1) / len(ordered) for index in range(len(ordered))]
            latency.plot(ordered, share, style, label=f"{name}: commit to {to}")
    latency.set(xscale="log", xlabel="ms", ylabel="% of events within", title="Latency at 200/s")
    latency.legend(loc="lower right")
    for name, each in result.sustained.items():
        backlog.plot(each.backlog, label=f"{each.committed:,.0f} events/s, {name} a commit")
    backlog.set(xlabel="s", ylabel="events not yet handled", title="Backlog", ylim=(0, None))
    backlog.legend()
    figure.savefig(target)
