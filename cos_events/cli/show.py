"""The command `cos-events show`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import click

from cos_events.cli.output import (
    NO_SUBSCRIPTIONS,
    for_people,
    json_option,
    print_json,
    print_table,
)
from cos_events.cli.queued import queued
from cos_events.cli.servers import adopt_running

if TYPE_CHECKING:
    from cos_events.store.outcomes import Outcome, Recorded

GRACE = timedelta(seconds=60)
"""What was published longer ago, and not received, is missing; as for `verify`."""


@click.command("show")
@click.argument("event", type=click.UUID)
@json_option
def command(event: UUID, as_json: bool) -> None:
    """Show one event, by its base_log_id: its envelope, and what became of it at each subscription.

    \b
    delivered   had its effect
    held        waits in PostgreSQL: its queue is full, it is paused, or not its turn
    waiting     not yet published
    in flight   published a moment ago, or still in its queue
    retrying    a copy waits on the broker, for its retry or for its first run
    dead        among the dead letters (see `cos-events dlq show`)
    discarded   purged by a person
    missing     published over a minute ago, not heard of since: the relay sends it again
    not wanted  has another module or type, or was recorded before the subscription began
    """  # noqa: D301 - the mark of click for lines that stay
    adopt_running()
    found, outcomes = _find(event)
    if as_json:
        print_json(
            {
                **asdict(found),
                "envelope": json.loads(found.envelope),
                "subscriptions": [asdict(each) for each in outcomes],
            }
        )
        return
    print_json(json.loads(found.envelope))
    click.echo()
    click.echo(f"recorded   {for_people(found.recorded_at)}")
    click.echo(f"published  {for_people(found.published_at or 'not yet: see `cos-events status`')}")
    click.echo()
    print_table(
        ["subscription", "state", "attempts", "since", "next attempt", "why"],
        [
            [
                each.subscription,
                each.state.replace("_", " "),
                each.attempts,
                each.since or "",
                each.next_attempt_at or "",
                each.why,
            ]
            for each in outcomes
        ],
        none=NO_SUBSCRIPTIONS,
    )


def _find(event_id: UUID) -> tuple[Recorded, list[Outcome]]:
    from cos_events.store import outcomes, retention
    from cos_events.store.engine import explained, get_engine

    with explained(), get_engine().connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        found = outcomes.recorded(connection, event_id)
        if found is None:
            dropped = retention.dropped_before(connection)
            raise click.ClickException(
                f"no event {event_id} is recorded here"
                + (f"; most events before {for_people(dropped)} were dropped" if dropped else "")
            )
        became = outcomes.outcomes(connection, event_id, GRACE)
    return found, [_if_queued(each) for each in became]


def _if_queued(outcome: Outcome) -> Outcome:
    if outcome.state != "missing":
        return outcome
    depth = queued(outcome.subscription)
    if depth is None:
        return replace(outcome, why=f"{outcome.why}, once the broker answers")
    if not depth:
        return outcome
    return replace(outcome, state="in_flight", why=f"its queue has {depth:,} messages")
