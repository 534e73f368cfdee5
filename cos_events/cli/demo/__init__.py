"""The command `cos-events demo`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cos_events.cli.interrupt import cleaning_up, temporary_folder
from cos_events.cli.servers import available, described, own


@click.command("demo")
@click.option("--broker-url", help="Use this broker instead of the private Valkey, e.g. amqp://…")
@click.option(
    "--here",
    is_flag=True,
    help="Use the servers of DATABASE_URL and REDIS_URL; what it commits stays there.",
)
@click.option(
    "--input",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON lines to record, as `cos-events record` takes them.  [default: made up]",
)
@click.option(
    "--events",
    default=200,
    show_default=True,
    type=click.IntRange(3, 1_000_000),
    help="How many events to commit.",
)
def command(broker_url: str | None, here: bool, source: Path | None, events: int) -> None:
    """Watch events travel from commit to every subscriber, on private servers.

    Starts a private PostgreSQL and Valkey from wheels (no Docker, no root), COS's workers and
    another application's; commits events; shows both wires, a retry, a dead letter and its replay;
    ends with an account of every event. Leaves nothing behind. Exits with 0 if nothing is missing.
    """
    from cos_events.cli.demo.story import Story, require_enough
    from cos_events.cli.demo.trouble import FOLDER

    if source:
        require_enough(source)
    with (
        cleaning_up(),
        temporary_folder("cos-events-demo-") as folder,
        available(None, broker_url) if here else own(broker_url) as servers,
    ):
        # Of a worker that must be killed, too, nothing stays.
        os.environ[FOLDER] = os.environ["TMPDIR"] = str(folder)
        raise SystemExit(Story(folder, described(servers), source, events).tell())
