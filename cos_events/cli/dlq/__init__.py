"""The command `cos-events dlq …`, one subcommand a file."""

from __future__ import annotations

import click

from cos_events.cli.dlq.listing import list_, show
from cos_events.cli.dlq.purging import purge
from cos_events.cli.dlq.replaying import replay


@click.group("dlq")
def command() -> None:
    """Dead letters: events whose retries are exhausted, or that a handler rejected.

    They wait in PostgreSQL, so all of this works even when the broker has lost its queues.

    \b
    cos-events dlq list                          all of them
    cos-events dlq list mailer --error OSError   those of one kind
    cos-events dlq show EVENT                    everything about one
    cos-events dlq replay mailer --newer-than 2h once the cause is fixed
    cos-events dlq purge mailer --event EVENT    never again
    """  # noqa: D301 - the mark of click for lines that stay


for each in (list_, show, replay, purge):
    command.add_command(each)
