"""The command `cos-events dlq purge`."""

from __future__ import annotations

from typing import Any

import click

from cos_events.cli.asking import ask
from cos_events.cli.dlq.options import filters, refuse_filters
from cos_events.cli.name import SubscriptionName
from cos_events.cli.output import json_option, print_json, say_left_out
from cos_events.cli.progress import progress_bar
from cos_events.cli.selecting import doubt
from cos_events.cli.servers import adopt_running


@click.command("purge")
@click.argument("subscription", type=SubscriptionName())
@filters
@click.option("--limit", type=click.IntRange(1), help="At most this many, of the oldest events.")
@click.option(
    "--unusable", is_flag=True, help="Instead: messages on the broker that are not envelopes."
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def purge(
    subscription: str, limit: int | None, unusable: bool, yes: bool, as_json: bool, **given: Any
) -> None:
    """Drop dead letters: they never run again.

    The ledger records them as discarded, and `verify` counts them as such.
    """
    from cos_events.dead_letters import on_broker, replaying
    from cos_events.dead_letters.finding import require
    from cos_events.store.dead_letters import Filter

    adopt_running()
    if unusable:
        refuse_filters(limit=limit, **given)
        if not yes:
            ask(f"Drop the unusable messages of {subscription} for good?")
        with progress_bar("purging", None) as done:
            purged = on_broker.purge_unusable(subscription, done)
    else:
        which = Filter(subscription, **given)
        require(which)
        total = replaying.count(which, limit)
        if not total:
            doubt(event_type=which.event_type)
        elif not yes:
            what = "1 dead letter" if total == 1 else f"{total:,} dead letters"
            ask(f"Drop {what} of {subscription} for good?")
        with progress_bar("purging", total) as done:
            purged = len(replaying.purge(which, limit, done))
        say_left_out(replaying.count(which, total - purged))
    if as_json:
        print_json({"subscription": subscription, "purged": purged})
    else:
        click.echo(f"{purged:,} purged from {subscription}")
