"""The command `cos-events record`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import click

from cos_events.cli.output import json_option, print_json
from cos_events.cli.servers import adopt_running


@click.command("record")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--batch",
    default=100,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Records in one transaction.",
)
@click.option(
    "--rejects",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where refused lines are kept.  [default: FILE.bad.jsonl]",
)
@click.option("--from-line", default=1, type=click.IntRange(1), help="Start at this line.")
@click.option(
    "--events-only", is_flag=True, help="Record events, of any type, without writing to L1."
)
@json_option
def command(  # noqa: PLR0913 - the options
    *,
    file: IO[bytes],
    batch: int,
    rejects: Path | None,
    from_line: int,
    events_only: bool,
    as_json: bool,
) -> None:
    """Write JSON lines from FILE (or - for standard input) to L1, and record their events.

    A line is an object with `event_type` (prompt_trace or event_log) and `data`, and optionally
    `occurred_at`, `request_id`, `trace_id`, `module`. A line that is refused is reported by its
    number and kept as it is; the others are still recorded. Exits with 1 if any was refused.

    With --events-only a line may have any `event_type`, and reaches the subscriptions that want it:

    \b
        echo '{"module": "shop", "event_type": "order_placed", "data": {"number": 7}}' |
            cos-events record --events-only -
    """  # noqa: D301 - the mark of click for lines that stay
    from rich.console import Console
    from rich.progress import Progress

    from cos_events import telemetry
    from cos_events.l1.lines import log_line, record_line, record_lines
    from cos_events.store.engine import explained, get_engine

    adopt_running()
    telemetry.configure("record")
    keep = rejects or Path(f"{'stdin' if file.name in ('-', '<stdin>') else file.name}.bad.jsonl")
    # Before anything is recorded: a line that is refused could not be kept.
    if not os.access(keep if keep.exists() else keep.parent, os.W_OK):
        raise click.BadParameter(
            f"{keep} cannot be written: where should refused lines be kept?", param_hint="--rejects"
        )
    console = Console(stderr=True)
    size = Path(file.name).stat().st_size if Path(file.name).is_file() else None
    with (
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
        explained(),
    ):
        bar = progress.add_task("recording", total=size)
        summary = record_lines(
            get_engine(),
            file,
            batch=batch,
            from_line=from_line,
            keep=keep,
            write=record_line if events_only else log_line,
            on_read=lambda bytes_read: progress.update(bar, advance=bytes_read),
            on_refused=lambda line, why: console.print(
                f"line {line}: {why}", style="red", markup=False, soft_wrap=True
            ),
        )
    kept = str(keep) if summary.refused else None
    if as_json:
        print_json({"recorded": summary.recorded, "refused": summary.refused, "rejects": kept})
    else:
        click.echo(f"{summary.recorded:,} recorded, {summary.refused:,} refused")
        if kept:
            click.echo(f"the refused lines are in {kept}", err=True)
    if summary.refused:
        raise SystemExit(1)
