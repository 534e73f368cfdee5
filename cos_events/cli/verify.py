"""The command `cos-events verify`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from cos_events.cli.name import SubscriptionName
from cos_events.cli.output import NO_SUBSCRIPTIONS, json_option, print_json, print_table
from cos_events.cli.progress import progress_bar
from cos_events.cli.queued import queued
from cos_events.cli.selecting import doubt, selecting
from cos_events.cli.servers import adopt_running
from cos_events.cli.when import Seconds
from cos_events.selection import EVERYTHING, Selection

if TYPE_CHECKING:
    from cos_events.l1.healing import Unrecorded
    from cos_events.store.ledger import Account


@click.command("verify")
@click.option(
    "--grace",
    default=60.0,
    show_default=True,
    type=Seconds(),
    help="Seconds after publication from which an event without a delivery counts as missing.",
)
@click.option(
    "--wait",
    default=0.0,
    type=Seconds(),
    help="Wait up to this many seconds until nothing is held, waiting, in flight or missing.",
)
@click.option("--subscription", type=SubscriptionName(), help="Only this one.")
@selecting
@click.option(
    "--all-delivered",
    is_flag=True,
    help="Also exit with 1 if anything is held, waiting, in flight or dead.",
)
@click.option("--heal", is_flag=True, help="Record the L1 rows that have no event.")
@json_option
def command(  # noqa: PLR0913 - the options
    *,
    grace: float,
    wait: float,
    subscription: str | None,
    all_delivered: bool,
    heal: bool,
    as_json: bool,
    **selected: Any,
) -> None:
    """Compare what was committed with what each subscription has received.

    \b
    committed   events that the subscription is owed
    delivered   had their effect
    held        wait in PostgreSQL: its queue is full, it is paused, or not their turn
    waiting     in the outbox, not yet published
    in flight   published a moment ago, still in its queue, or waiting for a retry
    dead        among the dead letters (see `cos-events dlq`)
    discarded   purged by a person
    missing     published longer ago than --grace, and not heard of since

    Also finds L1 rows that were written without `log_l1` (raw SQL, COPY) and have no event; --heal
    records their events, and publishers deliver them. Looks at what is retained
    (COS_EVENTS_RETAIN_FOR). --json adds the counts by module, and a digest of the delivered ids.

    Exits with 0 if nothing is missing and no L1 row lacks its event, otherwise with 1, or with 2
    for a wrong option. With --all-delivered, undelivered events and dead letters count too.
    """  # noqa: D301 - the mark of click for lines that stay
    adopt_running()
    selection = Selection(**selected)
    unrecorded = _unrecorded(selection, heal=heal)
    accounts = settled_accounts(grace, wait, subscription, selection)
    left = unrecorded.found - unrecorded.healed
    if not any(each.committed for each in accounts):
        doubt(event_type=selection.event_type, module=selection.module)
    if as_json:
        which = {"subscription": subscription, **asdict(selection)}
        print_json(_report(which, grace, accounts, unrecorded))
    else:
        if heal and unrecorded.found:
            click.echo(f"{unrecorded.found:,} L1 rows had no event, {unrecorded.healed:,} healed")
        elif unrecorded.found:
            click.echo(
                f"{unrecorded.found:,} L1 rows have no event: run `verify --heal` to record them"
            )
        for event_id, reason in unrecorded.refused.items():
            click.echo(f"{event_id}: {reason}", err=True)
        print_accounts(accounts)
    if left or any(each.missing for each in accounts):
        raise SystemExit(1)
    if all_delivered and any(each.dead or _is_owed(each) for each in accounts):
        raise SystemExit(1)


def _unrecorded(selection: Selection, *, heal: bool) -> Unrecorded:
    from cos_events.l1 import healing
    from cos_events.store.engine import explained, get_engine

    with explained():
        engine = get_engine()
        with engine.connect() as connection:
            total = healing.count(connection, selection)
        with progress_bar("L1 rows", total) as done:
            return healing.find(engine, selection, heal=heal, on_done=done)


def settled_accounts(
    grace: float,
    wait: float,
    subscription: str | None = None,
    selection: Selection = EVERYTHING,
) -> list[Account]:
    """The accounts, once nothing is owed any more or `wait` seconds are over.

    What is missing is waited for too: the relay sends it again.

    Raises:
        SubscriptionError: there is no such subscription.
    """
    deadline = time.monotonic() + wait
    while True:
        accounts = [_counting_queued(each) for each in _accounts(grace, subscription, selection)]
        if not any(_is_owed(each) for each in accounts) or time.monotonic() >= deadline:
            return accounts
        time.sleep(0.2)


def _is_owed(account: Account) -> bool:
    return bool(account.waiting or account.in_flight or account.held or account.missing)


def _accounts(grace: float, subscription: str | None, selection: Selection) -> list[Account]:
    from cos_events.store import subscriptions
    from cos_events.store.engine import explained, get_engine
    from cos_events.store.ledger import outbox_range, verify

    with explained(), get_engine().connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        subscriptions.require(connection, subscription)
        first, last = outbox_range(connection)
        with progress_bar("events", last - first + 1) as done:
            return verify(connection, grace, subscription, selection, done)


def _report(
    which: dict[str, object], grace: float, accounts: list[Account], unrecorded: Unrecorded
) -> dict[str, object]:
    from cos_events.store import retention
    from cos_events.store.engine import explained, get_engine
    from cos_events.store.ledger import outbox_range

    with explained(), get_engine().connect() as connection:
        first, last = outbox_range(connection)
        complete_from = retention.dropped_before(connection)
    return {
        "range": {
            "first_id": first,
            "last_id": last,
            "complete_from": complete_from,
            **which,
        },
        "grace": grace,
        "subscriptions": [asdict(each) for each in accounts],
        "unrecorded": {
            "found": unrecorded.found,
            "healed": unrecorded.healed,
            "refused": {str(event_id): why for event_id, why in unrecorded.refused.items()},
        },
    }


def _counting_queued(account: Account) -> Account:
    if not account.missing:
        return account
    late = min(account.missing, queued(account.subscription) or 0)
    return replace(account, missing=account.missing - late, in_flight=account.in_flight + late)


def print_accounts(accounts: Sequence[Account]) -> None:
    """Print the accounts as a table."""
    if not accounts:
        click.echo(NO_SUBSCRIPTIONS)
        return
    rows = []
    for each in accounts:
        columns = asdict(each)
        modules = columns.pop("modules")
        rows.append(columns)
        if len(modules) > 1:
            rows += [
                {**columns, "subscription": f"  {name}", **counts}
                for name, counts in modules.items()
            ]
    names = [name for name in rows[0] if name != "digest"]
    print_table(
        [name.replace("_", " ") for name in names], [[row[name] for name in names] for row in rows]
    )
    click.echo(f"missing {sum(each.missing for each in accounts):,}")
