"""The options by which recorded events are chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cos_events.cli.when import When


def selecting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options `since`, `until`, `event_type` and `module`: a `Selection`'s."""
    for option in (
        click.option("--module", help="Only events of this source module."),
        click.option("--event-type", help="Only events of this type."),
        click.option("--until", type=When(), help="Recorded before."),
        click.option(
            "--since",
            type=When(),
            help="Recorded at or after: 2026-11-25T10:00Z, or 2h for two hours ago.",
        ),
    ):
        function = option(function)
    return function
