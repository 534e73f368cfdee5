"""The command `cos-events up`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import click

from cos_events.cli.interrupt import cleaning_up
from cos_events.cli.port import usable_port
from cos_events.cli.servers import URLS, available, described, home
from cos_events.cli.worker import app_option


@click.command("up")
@click.option("--broker-url", help="Use this broker instead of the private Valkey, e.g. amqp://…")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="The data folder.  [default: COS_EVENTS_HOME, or the user's data folder]",
)
@app_option
def command(broker_url: str | None, data: Path | None, app: str) -> None:
    """Run everything until Ctrl-C: servers, tables, publisher, subscribers, API and Flower.

    Without a DATABASE_URL, PostgreSQL and Valkey are private ones, from wheels; their data is kept
    for the next time. Commands in another terminal find them by themselves (with --data: if
    COS_EVENTS_HOME names that folder), your application with `cos-events env`. The API's /metrics,
    or COS_EVENTS_METRICS_LISTEN, shows the counts of all its processes.
    """
    with suppress(KeyboardInterrupt), cleaning_up():
        # Its workers and Flower look there.
        os.environ["COS_EVENTS_APP"] = app
        _run(broker_url, data)
    click.echo("stopped")


def _run(broker_url: str | None, data: Path | None) -> None:
    from cos_events import embedded, metrics
    from cos_events.cli.flower import ensure_password
    from cos_events.cli.processes import Spec, check_alive, running, worker
    from cos_events.settings import get_settings, mask

    folder = data or home()
    _make(folder)
    has_api, has_flower = find_spec("fastapi") and find_spec("uvicorn"), find_spec("flower")
    settings = get_settings()
    given = [name for name in URLS if name.lower() in settings.model_fields_set]
    # First: its owner has the ports, too.
    embedded.require_free(folder)
    if has_api:
        _take_port("COS_EVENTS_API_PORT", settings.api_host, settings.api_port)
    if has_flower:
        _take_port("FLOWER_PORT", settings.flower_address, settings.flower_port)
    with available(folder, broker_url) as servers:
        click.echo(f"using {described(servers)}")
        _prepare(given)
        specs = [worker("publisher", "publisher"), worker("subscribers", "subscriber")]
        metrics.share_counts()
        if listen := get_settings().metrics_listen:
            metrics.serve(listen)
        if has_api:
            specs.append(Spec("api", ["cos_events", "api"], b"startup complete"))
            where = f"http://{get_settings().api_host}:{get_settings().api_port}"
        else:
            where = "not installed: pip install 'cos-events[api]'"
        if has_flower:
            who = ensure_password(folder)
            specs.append(Spec("flower", ["cos_events", "flower"], b"Visit me at"))
            port = get_settings().flower_port
            flower = f"http://{get_settings().flower_address}:{port}  {who}"
        else:
            flower = "not installed: pip install 'cos-events[flower]'"
        with running(folder, specs) as started:
            settings = get_settings()
            click.echo(f"database  {mask(settings.database_url)}")
            click.echo(f"channel   {mask(settings.redis_url)}")
            click.echo(f"broker    {mask(settings.broker_url)}")
            click.echo(f"api       {where}")
            click.echo(f"flower    {flower}")
            click.echo(f"logs      {folder}")
            there = f"COS_EVENTS_HOME={folder} " if data else ""
            click.echo(
                f"ready; try `{there}cos-events listen` and `{there}cos-events status`; "
                "Ctrl-C stops it"
            )
            while True:
                time.sleep(1.0)
                if servers:
                    servers.check_alive()
                check_alive(started)


def _make(folder: Path) -> None:
    """Make the data folder, private to this user; one that is there is left as it is."""
    from cos_events.embedded.account import make_folder, server_account
    from cos_events.embedded.failures import explained

    with explained(folder):
        make_folder(folder, server_account())


def _prepare(given: Sequence[str]) -> None:
    """Make the tables, and see that the broker answers; `given` are the variables with URLs."""
    from cos_events import broker
    from cos_events.errors import BrokerAway, CosEventsError, DatabaseAway
    from cos_events.store.engine import explained, get_engine
    from cos_events.store.migrations import upgrade

    try:
        with explained():
            upgrade(get_engine())
        with broker.connected():
            pass
    except (DatabaseAway, BrokerAway) as error:
        if not given:
            raise
        raise CosEventsError(
            f"{str(error).rstrip('.')}; or unset {', '.join(given)} (check .env too): "
            "then `up` starts its own servers"
        ) from error


def _take_port(setting: str, host: str, port: int) -> None:
    """Have a server of ours listen on this port, or on a free one for 0; refuse one in use."""
    from cos_events.settings import get_settings

    os.environ[setting] = str(usable_port(setting, host, port))
    get_settings.cache_clear()
