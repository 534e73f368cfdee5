"""The command `cos-events config`."""

from __future__ import annotations

from dataclasses import replace

import click

from cos_events.cli.output import json_option, print_json, print_table


@click.command("config")
@json_option
def command(as_json: bool) -> None:
    """Show every setting in force, and where its value came from.

    Secrets are masked. What each means: docs/configuration.md. The servers of a running
    `cos-events up` count; for their URLs in full: `cos-events env`.
    """
    from cos_events.cli.servers import URLS, adopt_running
    from cos_events.settings import in_force, unknown

    adopted = URLS if adopt_running() else ()
    settings = [
        replace(each, source="cos-events up") if each.name in adopted else each
        for each in in_force()
    ]
    if as_json:
        print_json({each.name: {"value": each.value, "from": each.source} for each in settings})
    else:
        print_table(["setting", "value", "from"], [[x.name, x.text(), x.source] for x in settings])
    for name in unknown():
        click.echo(f"{name} is set, but there is no such setting: is it misspelt?", err=True)
