"""The command `cos-events dlq …`."""

from __future__ import annotations

from uuid import UUID

import click

from cos_events.cli.output import json_option, print_json, print_table
from cos_events.cli.servers import adopt_running


@click.group("dlq")
def command() -> None:
    """Dead letters: events whose retries are exhausted, or that a handler rejected."""


_subscription = click.argument("subscription")
_events = click.option(
    "--event", "events", multiple=True, type=click.UUID, help="Only this event; repeatable."
)
_limit = click.option("--limit", default=100, show_default=True, type=click.IntRange(1))


@command.command("list")
@_subscription
@_limit
@json_option
def list_(subscription: str, limit: int, as_json: bool) -> None:
    """List a subscription's dead letters, oldest first."""
    from cos_events import dead_letters

    adopt_running()
    letters = dead_letters.find(subscription, limit)
    if as_json:
        print_json([letter.as_dict() for letter in letters])
    else:
        print_table(
            ["event", "type", "attempts", "died at", "error"],
            [
                [x.event_id, x.envelope.event_type, x.attempts, f"{x.died_at:%F %T}", x.error]
                for x in letters
            ],
        )


@command.command("replay")
@_subscription
@_events
@_limit
@json_option
def replay(subscription: str, events: tuple[UUID, ...], limit: int, as_json: bool) -> None:
    """Let dead letters run again, as on the first day; works also if the broker lost its queue."""
    from cos_events import dead_letters

    adopt_running()
    replayed = dead_letters.replay(subscription, limit, list(events) or None)
    if as_json:
        print_json({"subscription": subscription, "replayed": replayed})
    else:
        click.echo(f"{len(replayed):,} replayed to {subscription}")
