"""The command `cos-events db …`."""

from __future__ import annotations

import click

from cos_events.cli.servers import adopt_running


@click.group("db")
def command() -> None:
    """The bus's tables in PostgreSQL."""


@command.command("upgrade")
def upgrade() -> None:
    """Create the tables, or bring them to this version. Safe to run again, and by two at once."""
    from cos_events.store.engine import explained, get_engine
    from cos_events.store.migrations import upgrade as run_migrations

    adopt_running()
    with explained():
        before, after = run_migrations(get_engine())
    if set(after) == set(before):
        click.echo(f"the database is up to date ({', '.join(after)})")
    else:
        click.echo(f"the database is now at {', '.join(after)}")
