"""The command `cos-events status`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Any

import click

from cos_events.cli.output import (
    NO_SUBSCRIPTIONS,
    for_people,
    json_option,
    print_json,
    print_table,
)
from cos_events.cli.servers import adopt_running


@click.command("status")
@click.option("--check", is_flag=True, help="Exit with 1 if there is a problem, for cron.")
@json_option
def command(check: bool, as_json: bool) -> None:
    """Show what waits where: the outbox, the broker's queues, retries and dead letters.

    A subscription is `live`; `holding` when its queue is at its depth (COS_EVENTS_QUEUE_DEPTH) and
    more copies wait in PostgreSQL; `paused`, and why; or `backfilling` its history. Quick on any
    amount of history. A queue's depth is - if the broker does not answer. Whatever stands still for
    two minutes is a problem, as it is for /health/ready; so is a server that does not answer.
    """
    adopt_running()
    status = read_status()
    if as_json:
        print_json(status)
    else:
        _print(status)
    if check and status["problems"]:
        raise SystemExit(1)


def _print(status: dict[str, Any]) -> None:
    from cos_events.duration import format_duration
    from cos_events.settings import get_settings

    outbox = status["outbox"]
    click.echo(
        f"outbox    {outbox['rows']:,} waiting, the oldest for {outbox['oldest_seconds']:.1f} s"
    )
    for what in ("broker", "channel"):
        server = status[what]
        why = f": {server['why']}" if server["why"] else ""
        click.echo(f"{what:<9} {server['url']}  {server['state']}{why}")
    kept = status["kept"]
    since = f"from {for_people(kept['oldest'])} on" if kept["oldest"] else "no event yet"
    click.echo(f"kept      {kept['bytes'] / 2**20:,.1f} MiB, {since}")
    if kept["held_up_by"]:
        old = format_duration(get_settings().retain_for or 0)
        click.echo(f"          {kept['held_up_by']} has not received everything older than {old}")
    print_table(
        ["subscription", "condition", "queued", "held", "retrying", "dead"],
        [
            ["-" if value is None else value for value in each.values()]
            for each in status["subscriptions"]
        ],
        none=NO_SUBSCRIPTIONS,
    )
    for problem in status["problems"]:
        click.echo(f"problem   {problem}")


def read_status() -> dict[str, Any]:
    """All that `status` shows, as one JSON-able object."""
    from redis import RedisError

    from cos_events import broker, health
    from cos_events.errors import BrokerAway, DatabaseAway, SchemaMissing
    from cos_events.pubsub.clients import make_client
    from cos_events.settings import get_settings
    from cos_events.store import ledger, retention, subscriptions
    from cos_events.store.engine import explained, get_engine

    with explained(), get_engine().connect() as connection:
        backlog = ledger.backlog(connection)
        unfinished = ledger.unfinished(connection)
        conditions = subscriptions.conditions(connection)
        used, oldest = retention.size(connection)
        keep = get_settings().retain_for
        held_up_by = keep and retention.held_up_by(connection, timedelta(seconds=keep))
    depths: dict[str, int] | None = None
    try:
        problems = list(health.problems())
    except (DatabaseAway, SchemaMissing) as error:
        problems = [str(error)]
    broker_down = channel_down = None
    try:
        depths = broker.queue_depths(conditions)
    except BrokerAway as error:
        broker_down = error.why
        problems.append(f"the broker is down: {broker_down}")
    try:
        with make_client(patient=False) as redis:
            redis.ping()
    except RedisError as error:
        channel_down = str(error)
        problems.append(f"the channel is down: {channel_down}")
    return {
        "outbox": asdict(backlog),
        "kept": {"bytes": used, "oldest": oldest, "held_up_by": held_up_by},
        "broker": _server(broker.broker_url(), broker_down),
        "channel": _server(get_settings().redis_url, channel_down),
        "subscriptions": [
            {
                "subscription": name,
                "condition": condition,
                "queued": None if depths is None else depths.get(name, 0),
                "held": unfinished.get(name, {}).get("held", 0),
                "retrying": unfinished.get(name, {}).get("retrying", 0),
                "dead": unfinished.get(name, {}).get("dead", 0),
            }
            for name, condition in conditions.items()
        ],
        "problems": problems,
    }


def _server(url: str, down: str | None) -> dict[str, str | None]:
    from cos_events.settings import mask

    return {"url": mask(url), "state": "up" if down is None else "down", "why": down}
