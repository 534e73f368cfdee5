"""The options by which recorded events are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
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


def doubt(*, event_type: str | None, module: str | None = None) -> None:
    """Where nothing was chosen: say so if no retained event has one of these names."""
    from cos_events.store import outbox
    from cos_events.store.engine import explained, get_engine

    with explained(), get_engine().connect() as connection:
        if module is not None:
            _doubt("module", module, outbox.names(connection, "source_module"))
        if event_type is not None:
            _doubt("type", event_type, outbox.names(connection, "event_type"))


def _doubt(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        likely = get_close_matches(name, known, 1)
        meant = f": did you mean {likely[0]!r}?" if likely else ""
        click.echo(f"no retained event has {kind} {name!r}{meant}", err=True)
