"""The options by which dead letters are chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cos_events.cli.when import When


def _class_name(_context: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.isidentifier():
        raise click.BadParameter(
            f"{value!r} is not the name of an exception class, such as ValueError"
        )
    return value


def filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a `Filter`, by its fields' names."""
    for option in (
        click.option(
            "--event",
            "event_ids",
            multiple=True,
            type=click.UUID,
            help="Only this event; repeatable.",
        ),
        click.option("--event-type", help="Only events of this type."),
        click.option(
            "--error",
            "error_type",
            callback=_class_name,
            metavar="CLASS",
            help="Only those that died of this class of error, such as ValueError.",
        ),
        click.option(
            "--newer-than",
            "died_after",
            type=When(),
            help="Only those that died since then; 2h is two hours ago.",
        ),
        click.option(
            "--older-than", "died_before", type=When(), help="Only those that died before then."
        ),
    ):
        function = option(function)
    return function


def refuse_filters(**given: Any) -> None:
    """`--unusable` means messages, where the options of `filters` choose events.

    Raises:
        UsageError: one of them is given.
    """
    if any(given.values()):
        raise click.UsageError(
            "--unusable covers all messages that are not events: it takes no filter"
        )
