"""The command `cos-events env`."""

from __future__ import annotations

import os
import shlex

import click

from cos_events.cli.output import json_option, print_json


@click.command("env")
@json_option
def command(as_json: bool) -> None:
    """Print the URLs of the servers, for an application that is to use those of `cos-events up`.

    With their passwords, as lines for a shell: eval "$(cos-events env)". Their ports change with
    each start of `up`: evaluate them again then.
    """
    from cos_events import embedded
    from cos_events.cli.servers import home, urls_of

    if (servers := embedded.running(home())) is None:
        raise click.ClickException(
            f"no `cos-events up` runs with its data in {home()}: "
            "start it first, or name its folder by COS_EVENTS_HOME"
        )
    urls = urls_of(servers)
    if stale := [name for name, url in urls.items() if os.environ.get(name, url) != url]:
        click.echo(
            f"{', '.join(stale)} of this environment named other servers than the running `up` has",
            err=True,
        )
    if as_json:
        print_json(urls)
    else:
        for name, url in urls.items():
            click.echo(f"export {name}={shlex.quote(url)}")
