"""One picture for each dimension."""

from __future__ import annotations

from math import ceil, floor, log10
from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure

from benchmarks.growth.data import Row


def plot(found: dict[str, list[Row]], target: Path) -> None:
    """Draw each dimension, its first column to the right."""
    rcParams["svg.fonttype"] = "none"
    down = ceil(len(found) / 3)
    figure = Figure(figsize=(12, 3.6 * down), layout="constrained")
    for number, (name, rows) in enumerate(found.items(), 1):
        axes = figure.add_subplot(down, 3, number)
        across, *others = (each for each in rows[0] if not each.startswith("worst"))
        drawn = [each for each in others if each != "events"]
        for each in drawn:
            axes.plot([row[across] for row in rows], [row[each] for row in rows], "o-", label=each)
        values = [row[each] for row in rows for each in drawn]
        axes.set(xscale="log", yscale="log", title=name, xlabel=across)
        axes.set_ylim(10 ** floor(log10(min(values))), 10 ** ceil(log10(max(values))))
        axes.minorticks_off()
        axes.set_xticks([row[across] for row in rows], [f"{row[across]:,.0f}" for row in rows])
        axes.legend(fontsize="x-small", frameon=False)
    figure.savefig(target)
