"""The command `cos-events db …`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cos_events.cli.output import json_option, print_json
from cos_events.cli.servers import adopt_running


@click.group("db")
def command() -> None:
    """The bus's tables in PostgreSQL."""


@command.command("upgrade")
def upgrade() -> None:
    """Create the tables, or bring them to this version. Safe to run again, and twice at once.

    A database of a newer version stays as it is: older programs work on it.
    """
    from cos_events.store import migrations
    from cos_events.store.engine import explained, get_engine

    adopt_running()
    with explained():
        before, after = migrations.upgrade(get_engine())
    if migrations.unknown(after):
        click.echo(f"the database stays as it is: {_newer(after)}")
    elif set(after) == set(before):
        click.echo(f"the database is up to date ({', '.join(after)})")
    else:
        click.echo(f"the database is now at {', '.join(after)}")


@command.command("current")
@json_option
def current(as_json: bool) -> None:
    """Show which revisions the database is at, and which ones this version has.

    Exits with 1 if the database lacks one.
    """
    from cos_events.store import migrations
    from cos_events.store.engine import explained, get_engine

    adopt_running()
    with explained(), get_engine().connect() as connection:
        found = migrations.current(connection)
    behind = migrations.is_behind(found)
    if as_json:
        print_json({"database": found, "version": migrations.heads(), "behind": behind})
    elif behind:
        click.echo(
            f"the database is at {', '.join(found) or 'nothing'}, this version at "
            f"{', '.join(migrations.heads())}: run `cos-events db upgrade`"
        )
    elif migrations.unknown(found):
        click.echo(_newer(found))
    else:
        click.echo(f"the database is up to date ({', '.join(found)})")
    if behind:
        raise SystemExit(1)


def _newer(revisions: Sequence[str]) -> str:
    from cos_events.store import migrations

    return (
        f"it is at {', '.join(revisions)}, but this version does not know "
        f"{', '.join(migrations.unknown(revisions))}: a newer one made it, or a package with its "
        "own migrations is not installed here"
    )
