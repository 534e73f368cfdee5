"""The command `cos-events env`."""

from __future__ import annotations

import shlex

import click

from cos_events.cli.output import json_option, print_json


@click.command("env")
@json_option
def command(as_json: bool) -> None:
    """Print the URLs of the servers, for an application that shall use those of `cos-events up`.

    With their passwords, as lines for a shell: eval "$(cos-events env)". Their ports change with
    each start of `up`.
    """
    from cos_events.cli.servers import adopt_running, home
    from cos_events.settings import get_settings

    if not adopt_running() and "database_url" not in get_settings().model_fields_set:
        raise click.ClickException(
            f"no `cos-events up` runs with its data in {home()}, and there is no DATABASE_URL: "
            "start it first, or name its folder by COS_EVENTS_HOME"
        )
    settings = get_settings()
    urls = {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "BROKER_URL": settings.broker_url,
    }
    if as_json:
        print_json(urls)
    else:
        for name, url in urls.items():
            click.echo(f"export {name}={shlex.quote(url)}")
