"""The command `cos-events subscriptions …`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from cos_events.cli.asking import ask
from cos_events.cli.name import SubscriptionName
from cos_events.cli.output import NO_SUBSCRIPTIONS, json_option, print_json, print_table
from cos_events.cli.progress import progress_bar
from cos_events.cli.servers import adopt_running

BATCH_SIZE = 10_000
"""Delivery rows that are dropped in one transaction."""


@click.group("subscriptions")
def command() -> None:
    """Who wants which events: workers register subscriptions when they start."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the subscriptions: what they want, and their state."""
    from cos_events.store import subscriptions
    from cos_events.store.engine import explained, get_engine

    adopt_running()
    with explained(), get_engine().connect() as connection:
        rows = subscriptions.rows(connection)
        conditions = subscriptions.conditions(connection)
    if as_json:
        columns = [dict(row._mapping) for row in rows]  # noqa: SLF001 - SQLAlchemy's public name for it
        named = [(each.pop("name"), each) for each in columns]
        print_json([{"subscription": x, **rest, "condition": conditions[x]} for x, rest in named])
        return
    print_table(
        ["subscription", "modules", "event types", "condition", "known since"],
        [
            [
                row.name,
                ", ".join(row.modules or ["all"]),
                ", ".join(row.event_types or ["all"]),
                conditions[row.name],
                row.created_at,
            ]
            for row in rows
        ],
        none=NO_SUBSCRIPTIONS,
    )


@command.command("pause")
@click.argument("names", type=SubscriptionName(), nargs=-1, required=True, metavar="NAME...")
@click.option("--because", help="What `status` shows.  [default: by hand]")
def pause(names: tuple[str, ...], because: str | None) -> None:
    """Stop calling their handlers until they are resumed; their events wait in PostgreSQL.

    One that a person has paused keeps that reason, unless another is given. Of several names,
    either all are paused or none.
    """
    from cos_events.store import pauses, subscriptions
    from cos_events.store.engine import explained, get_engine

    adopt_running()
    with explained(), get_engine().begin() as connection:
        for name in names:
            subscriptions.require(connection, name)
        earlier = {name: pauses.reason_by_hand(connection, name) for name in names}
        reasons = {name: because or earlier[name] or "by hand" for name in names}
        for name, reason in reasons.items():
            pauses.pause_by_hand(connection, name, reason)
    for name, reason in reasons.items():
        how = "is paused" if earlier[name] is None else "was paused already"
        click.echo(
            f"{name} {how}: {reason}; resume it with `cos-events subscriptions resume {name}`"
        )


@command.command("resume")
@click.argument("names", type=SubscriptionName(), nargs=-1, required=True, metavar="NAME...")
def resume(names: tuple[str, ...]) -> None:
    """Resume what was paused, by hand or by an outage; what waits follows in order."""
    from cos_events.store import pauses, subscriptions
    from cos_events.store.engine import explained, get_engine

    adopt_running()
    with explained(), get_engine().begin() as connection:
        for name in names:
            subscriptions.require(connection, name)
        was_paused = {name: pauses.resume_by_hand(connection, name) for name in names}
    for name, was in was_paused.items():
        click.echo(f"{name} has resumed" if was else f"{name} was not paused")


@command.command("remove")
@click.argument("name", type=SubscriptionName())
@click.option(
    "--dead-letters", is_flag=True, help="Delete its dead-letter queue on the broker, too."
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def remove(name: str, dead_letters: bool, yes: bool, as_json: bool) -> None:
    """Remove a subscription for good: its row, its queue, and everything the ledger has about it.

    First take its code out of the application and stop its workers: a worker that starts registers
    it again, as a new one. If this is interrupted, run it again.
    """
    from cos_events import broker
    from cos_events.errors import BrokerAway
    from cos_events.store import removal, subscriptions
    from cos_events.store.engine import explained, get_engine
    from cos_events.topology import dead_letter_queue_name

    adopt_running()
    with explained(), get_engine().connect() as connection:
        if not removal.is_half_removed(connection, name):
            subscriptions.require(connection, name)
        left = removal.undelivered(connection, name)
    if not as_json:
        owed = ", ".join(f"{number:,} {state}" for state, number in left.items() if number)
        click.echo(f"{name} leaves undelivered: {owed or 'nothing'}", err=True)
    with suppress(BrokerAway):
        for node in broker.consumers_of(name):
            click.echo(
                f"{node} still consumes it: stop it first, or on its next start it registers "
                f"{name} as a new subscription",
                err=True,
            )
    if not yes:
        ask(f"Remove {name} for good?")
    with explained(), get_engine().begin() as connection:
        removal.forget(connection, name)
    try:
        broker.delete_queues([name, *([dead_letter_queue_name(name)] if dead_letters else [])])
    except Exception as error:  # noqa: BLE001 - any error of any broker
        click.echo(f"its queue remains: delete {name} on the broker ({error})", err=True)
    dropped = 0
    with progress_bar("dropping deliveries", None) as done:
        while batch := _drop_some(name):
            dropped += batch
            done(batch)
    _say_removed(name, left, dropped, as_json)


def _drop_some(name: str) -> int:
    from cos_events.store import removal
    from cos_events.store.engine import explained, get_engine

    with explained(), get_engine().begin() as connection:
        return removal.drop_deliveries(connection, name, BATCH_SIZE)


def _say_removed(name: str, left: dict[str, Any], dropped: int, as_json: bool) -> None:
    if as_json:
        print_json({"subscription": name, "undelivered": left, "deliveries_dropped": dropped})
    else:
        click.echo(f"{name} is removed, with {dropped:,} deliveries")
