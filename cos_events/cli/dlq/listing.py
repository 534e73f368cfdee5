"""The commands `cos-events dlq list` and `show`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

import click

from cos_events.cli.dlq.options import filters, refuse_filters
from cos_events.cli.name import SubscriptionName
from cos_events.cli.output import for_people, json_option, print_json, print_table
from cos_events.cli.servers import adopt_running


@click.command("list")
@click.argument("subscription", required=False, type=SubscriptionName())
@filters
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1))
@click.option(
    "--unusable", is_flag=True, help="Instead: messages on the broker that are not envelopes."
)
@json_option
def list_(
    subscription: str | None, limit: int, unusable: bool, as_json: bool, **given: Any
) -> None:
    """List dead letters, those of the oldest events first: one subscription's, or all."""
    from cos_events.dead_letters.finding import find
    from cos_events.store.dead_letters import Filter

    adopt_running()
    if unusable:
        refuse_filters(**given)
        _list_unusable(subscription, limit, as_json)
        return
    letters = list(find(Filter(subscription, **given), limit))
    if as_json:
        print_json([asdict(letter) for letter in letters])
        return
    columns = ["event", "type", "attempts", "died at", "error"]
    rows: list[list[Any]] = [
        [x.event_id, x.envelope.event_type, x.attempts, x.died_at, x.error] for x in letters
    ]
    if subscription is None:
        columns.insert(1, "subscription")
        for row, letter in zip(rows, letters, strict=True):
            row.insert(1, letter.subscription)
    print_table(columns, rows, none="no dead letters")
    if len(letters) == limit:
        click.echo(f"the first {limit:,}; more with --limit", err=True)


def _list_unusable(subscription: str | None, limit: int, as_json: bool) -> None:
    from cos_events.dead_letters import on_broker

    if subscription is None:
        raise click.UsageError("--unusable needs the name of a subscription")
    found = on_broker.unusable(subscription, limit)
    rows = [(x.died_at, x.reason, x.body.decode(errors="backslashreplace")) for x in found]
    if as_json:
        print_json([dict(zip(("died_at", "reason", "body"), row, strict=True)) for row in rows])
    else:
        print_table(
            ["died at", "reason", "body"],
            [[_moment(died_at), reason, body[:80]] for died_at, reason, body in rows],
            none="no unusable messages",
        )


def _moment(text: str) -> object:
    """As a moment, where it is one: anybody may put a message there."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


@click.command("show")
@click.argument("event", type=click.UUID)
@json_option
def show(event: UUID, as_json: bool) -> None:
    """Show everything about a dead letter: its error, its envelope, a correction if it has one."""
    from cos_events.dead_letters.finding import find
    from cos_events.errors import SubscriptionError
    from cos_events.store.dead_letters import Filter

    adopt_running()
    letters = list(find(Filter(event_ids=[event])))
    if not letters:
        raise SubscriptionError(f"no subscription has a dead letter {event}: see `dlq list`")
    if as_json:
        print_json([asdict(letter) for letter in letters])
        return
    for number, letter in enumerate(letters):
        if number:
            click.echo()
        for name, value in asdict(letter).items():
            if name not in ("envelope", "correction"):
                lines = for_people(value).split("\n")
                click.echo(f"{name:<16} " + f"\n{'':<17}".join(lines))
            elif value is not None:
                click.echo(f"{name}:")
                print_json(value)
