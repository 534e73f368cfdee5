"""The command `cos-events verify`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from cos_events.cli.output import json_option, print_json, print_table
from cos_events.cli.servers import adopt_running

if TYPE_CHECKING:
    from cos_events.ledger import Account


@click.command("verify")
@click.option(
    "--grace",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds after publication from which an event without a delivery counts as missing.",
)
@click.option(
    "--wait",
    default=0.0,
    type=click.FloatRange(min=0),
    help="Wait up to so many seconds until nothing is waiting or in flight.",
)
@json_option
def command(grace: float, wait: float, as_json: bool) -> None:
    r"""Compare the committed events with what each subscription has had.

    \b
    committed   events that the subscription is owed
    delivered   had their effect
    waiting     in the outbox, not yet published
    in flight   published a moment ago, still in its queue, or waiting for a retry
    dead        among the dead letters (see `cos-events dlq`)
    missing     published longer ago than --grace, and nobody knows

    Exits with 0 if nothing is missing, otherwise with 1.
    """
    adopt_running()
    accounts = settled_accounts(grace, wait)
    if as_json:
        print_json({"subscriptions": [asdict(each) for each in accounts]})
    else:
        print_accounts(accounts)
    if any(each.missing for each in accounts):
        raise SystemExit(1)


def settled_accounts(grace: float, wait: float) -> list[Account]:
    """The accounts, once nothing moves any more or `wait` seconds are over."""
    from cos_events.ledger import verify
    from cos_events.store.engine import explained, get_engine

    deadline = time.monotonic() + wait
    while True:
        with explained(), get_engine().connect() as connection:
            accounts = [_counting_queued(each) for each in verify(connection, grace)]
        moving = any(each.waiting or each.in_flight for each in accounts)
        if not moving or time.monotonic() >= deadline:
            return accounts
        time.sleep(0.2)


def _counting_queued(account: Account) -> Account:
    # What waits in the queue of a worker that is behind is late, not missing.
    if not account.missing:
        return account
    from cos_events import broker

    depth = (broker.queue_depths([account.subscription]) or {}).get(account.subscription, 0)
    queued = min(account.missing, depth)
    return replace(account, missing=account.missing - queued, in_flight=account.in_flight + queued)


def print_accounts(accounts: Sequence[Account]) -> None:
    """Print the accounts as a table."""
    if not accounts:
        click.echo("no subscriptions yet: start a worker")
        return
    rows = [asdict(each) for each in accounts]
    print_table([name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows])
    click.echo(f"missing {sum(each.missing for each in accounts):,}")
