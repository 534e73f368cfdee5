"""The command `cos-events bench`."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cos_events.cli.interrupt import cleaning_up
from cos_events.cli.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from cos_events.cli.bench.run import Result


@click.command("bench")
@click.option(
    "--broker",
    type=click.Choice(["redis", "rabbitmq"]),
    default="redis",
    show_default=True,
    help="Which broker carries the events; rabbitmq needs the system's rabbitmq-server.",
)
@click.option("--quick", is_flag=True, help="One short round of each: under a minute, and rough.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw latencies and backlogs into this file: .svg or .png.",
)
@json_option
def command(broker: Any, quick: bool, plot: Path | None, as_json: bool) -> None:
    """Measure what the bus costs, next to what the same servers can do without it.

    Starts a private PostgreSQL and Valkey (and RabbitMQ), a publisher, a worker for each of three
    subscriptions, and an application. Alternates measurements, in rounds, and shows medians;
    outbox, delivery ledger and acknowledgements are on. Takes about five minutes.

    \b
    hook     what the committing thread pays, next to a raw push in the hook
    latency  from commit to channel and to handler, next to a raw push and pop
    drain    from a full outbox, next to Celery tasks as people write them
    sustain  a load over a minute, the application included

    Only ratios within one run are comparable: machines differ, and drift.
    """  # noqa: D301 - the mark of click for lines that stay
    from rich.console import Console
    from rich.progress import Progress

    from cos_events.cli.bench.plot import check_can_plot, draw
    from cos_events.cli.bench.run import FULL, QUICK, BenchRun

    if plot:
        check_can_plot(plot)
    size = QUICK if quick else FULL
    console = Console(stderr=True)
    with cleaning_up(), Progress(console=console, transient=True) as progress:
        bar = progress.add_task("starting", total=size.steps)
        result = BenchRun(
            broker, size, lambda what: progress.update(bar, description=what, advance=1)
        ).run()
    if plot:
        draw(result, plot)
    machine = f"{platform.machine()}, Python {platform.python_version()}, {platform.system()}"
    if as_json:
        print_json(
            {
                "broker": broker,
                "quick": quick,
                "machine": machine,
                "figures": {key: each.as_dict() for key, each in result.figures.items()},
                "backlog": {key: each.backlog for key, each in result.sustained.items()},
                "memory_mib": result.memory,
            }
        )
    else:
        _print(result)


def _print(result: Result) -> None:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    rows = []
    for each in result.figures.values():
        met = each.met()
        rows.append(
            [
                each.what,
                f"{shown(each.value)} {each.unit}",
                shown(each.floor),
                shown(each.ratio),
                " and ".join(map(str, each.bars)),
                "" if met is None else "yes" if met else "no",
            ]
        )
    print_table(["figure", "median", "floor", "ratio", "bar", "reached"], rows)
    click.echo()
    memory = [[name, f"{a:.0f}", f"{b:.0f}"] for name, (a, b) in result.memory.items()]
    print_table(["process", "MiB at first", "MiB at last"], memory)
