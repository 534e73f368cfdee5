"""The command `cos-events replay`."""

from __future__ import annotations

import time
from typing import Any

import click

from cos_events.cli.asking import ask
from cos_events.cli.name import SubscriptionName
from cos_events.cli.output import json_option, print_json, say_left_out
from cos_events.cli.progress import progress_bar
from cos_events.cli.selecting import doubt, selecting
from cos_events.cli.servers import adopt_running
from cos_events.selection import Selection

ASK_ABOVE = 100
"""More events than that are replayed only after a question, or with --yes."""


@click.command("replay")
@click.argument("subscription", type=SubscriptionName())
@selecting
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--wait", is_flag=True, help="Wait until each is delivered or dead.")
@click.option("-y", "--yes", is_flag=True, help=f"Do not ask, even above {ASK_ABOVE} events.")
@json_option
def command(
    *,
    subscription: str,
    dry_run: bool,
    wait: bool,
    yes: bool,
    as_json: bool,
    **selected: Any,
) -> None:
    """Run history again for one subscription, on purpose: its effects happen once more.

    For a subscriber that has learnt something new, or lost its data. All of the history that it
    wants runs again, oldest first, as its queue has room: what it has received, what is dead, and
    what was recorded before it existed. Live events continue meanwhile.

    To run only dead letters again: `cos-events dlq replay`.
    """
    from cos_events import replay

    adopt_running()
    selection = Selection(**selected)
    total = replay.count(subscription, selection)
    if not total:
        doubt(event_type=selection.event_type, module=selection.module)
    if dry_run:
        _say(subscription, total, "would run again", as_json)
        return
    if total > ASK_ABOVE and not yes:
        question = f"Run {total:,} events again for {subscription}? Its effects happen once more."
        ask(question)
    with progress_bar("replaying", total) as done:
        held, left_out = replay.run_again(subscription, selection, done)
    if wait:
        try:
            _follow(subscription, held)
        except KeyboardInterrupt:
            click.echo(f"no longer waiting: {held:,} events will run again anyway", err=True)
            raise SystemExit(130) from None
    what = "replayed" if wait else "run again as the queue has room"
    _say(subscription, held, what, as_json, left_out)


def _follow(subscription: str, total: int) -> None:
    from cos_events import replay

    with progress_bar("delivering", total) as done:
        left = total
        while left:
            now = min(left, replay.unfinished(subscription))
            done(left - now)
            left = now
            time.sleep(0.2 if left else 0)


def _say(
    subscription: str, events: int, what: str, as_json: bool, left_out: int | None = None
) -> None:
    if as_json:
        left = {} if left_out is None else {"left_out": left_out}
        print_json({"subscription": subscription, "events": events, **left})
    else:
        click.echo(f"{events:,} events {what} for {subscription}")
    say_left_out(left_out or 0)
