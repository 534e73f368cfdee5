"""How commands print: JSON for scripts, tables and moments for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from cos_events.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")

NO_SUBSCRIPTIONS = "no subscriptions yet: start a worker"
"""Said instead of an empty table of them."""

GAP = 2
"""Spaces between two columns."""

LEAST = 20
"""Characters: a column of longer text is folded to no fewer."""


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, default=_for_scripts))


def _for_scripts(value: Any) -> Any:
    """A moment as an envelope has it; an envelope itself; anything else as text."""
    from cos_events.envelope import format_timestamp

    if isinstance(value, datetime):
        return format_timestamp(value)
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


def for_people(value: object) -> str:
    """A value as text: a moment in UTC and to the second, a large number in groups of digits.

    What would steer the terminal is escaped: an event, or an error about it, may hold anything.
    """
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%F %T}Z"
    if isinstance(value, int):
        return f"{value:,}"
    return "\n".join(map(printable, str(value).split("\n")))


def say_left_out(number: int) -> None:
    """Say how many of the requested ones are being handled; nothing if none are."""
    if number:
        click.echo(f"{number:,} are being handled right now and were left out", err=True)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], none: str = "none"
) -> None:
    """Print a table whose number columns are aligned to the right.

    A terminal folds what is too long for it, but no id, moment or number: columns that have no room
    beside the first ones follow below them. In a pipe a search finds the whole row in one line.

    Args:
        columns: their names.
        rows: of as many values.
        none: said instead where there are no rows.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    if not rows:
        click.echo(none)
        return
    cells = [[for_people(value) for value in row] for row in rows]
    console = Console() if sys.stdout.isatty() else Console(width=100_000)
    table = Table(box=None, pad_edge=False, header_style="bold")
    least = 0
    by_column = zip(*rows, strict=True), zip(*cells, strict=True)
    for name, values, texts in zip(columns, *by_column, strict=True):
        first = not table.columns
        numbers = all(isinstance(value, int | float) for value in values)
        whole = first or all(isinstance(value, datetime | UUID) for value in values)
        widest = max(map(len, texts))
        least += widest if whole or numbers else min(widest, LEAST)
        table.add_column(
            name, justify="right" if numbers else "left", no_wrap=whole, overflow="fold"
        )
    if least + GAP * (len(columns) - 1) > console.width:
        _print_in_two_lines(console, [list(columns), *cells])
        return
    for row in cells:
        # As text: an error may hold what rich takes for markup.
        table.add_row(*map(Text, row))
    console.print(table)


def _print_in_two_lines(console: Console, lines: Sequence[Sequence[str]]) -> None:
    """Print as many of each row's columns as have room, and the others below them, indented."""
    from rich.padding import Padding
    from rich.text import Text

    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ends = accumulate(width + GAP for width in widths)
    beside = max(1, sum(end - GAP <= console.width for end in ends))
    for number, line in enumerate(lines):
        style = "" if number else "bold"
        padded = [cell.ljust(width + GAP) for cell, width in zip(line, widths, strict=True)]
        console.print(Text("".join(padded[:beside]), style))
        console.print(Padding.indent(Text("".join(padded[beside:]).rstrip(), style), 2 * GAP))
