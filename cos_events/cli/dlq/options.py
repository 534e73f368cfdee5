"""The options by which dead letters are chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from cos_events.cli.when import When

if TYPE_CHECKING:
    from cos_events.store.dead_letters import Filter


def _class_name(_context: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.isidentifier():
        raise click.BadParameter(
            f"{value!r} is not the name of an exception class, such as ValueError"
        )
    return value


def filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `chosen`."""
    for option in (
        click.option(
            "--event", "events", multiple=True, type=click.UUID, help="Only this event; repeatable."
        ),
        click.option("--event-type", help="Only events of this type."),
        click.option(
            "--error",
            callback=_class_name,
            metavar="CLASS",
            help="Only those that died of this class of error, such as ValueError.",
        ),
        click.option(
            "--newer-than", type=When(), help="Only those that died within: 2h, or since a time."
        ),
        click.option("--older-than", type=When(), help="Only those that died before."),
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
            "--unusable is of all messages that are no events: it takes no filter"
        )


def chosen(subscription: str | None, **given: Any) -> Filter:
    """The filter that these options say."""
    from cos_events.store.dead_letters import Filter

    return Filter(
        subscription,
        given["events"],
        given["event_type"],
        given["error"],
        given["newer_than"],
        given["older_than"],
    )
