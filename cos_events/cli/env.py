"""The command `cos-events env`."""

from __future__ import annotations

import os
import shlex

import click

from cos_events.cli.output import json_option, print_json


@click.command("env")
@json_option
def command(as_json: bool) -> None:
    """Print the URLs of the servers of `cos-events up`, for an application that is to use them.

    They include passwords, and are lines for a shell: eval "$(cos-events env)". The ports change
    each time `up` starts: evaluate them again then.
    """
    from cos_events import embedded
    from cos_events.cli.servers import home, urls_of

    if (servers := embedded.running(home())) is None:
        raise click.ClickException(
            f"no `cos-events up` is running with its data in {home()}: "
            "start it first, or set COS_EVENTS_HOME to its folder"
        )
    urls = urls_of(servers)
    if stale := [name for name, url in urls.items() if os.environ.get(name, url) != url]:
        click.echo(
            f"{', '.join(stale)} in this environment named other servers than those of the "
            "running `up`",
            err=True,
        )
    if as_json:
        print_json(urls)
    else:
        for name, url in urls.items():
            click.echo(f"export {name}={shlex.quote(url)}")
