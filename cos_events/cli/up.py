"""The command `cos-events up`."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import click

from cos_events.cli.servers import available, home


@click.command("up")
@click.option("--broker-url", help="Use this broker instead of the private Valkey, e.g. amqp://…")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="The data folder.  [default: COS_EVENTS_HOME, or the user's data folder]",
)
def command(broker_url: str | None, data: Path | None) -> None:
    """Run everything until Ctrl-C: servers, tables, publisher, COS's subscribers, API and Flower.

    Without a DATABASE_URL, PostgreSQL and Valkey are private ones, from wheels; their data stays
    for the next time. Other commands in another terminal find them by themselves. The API's
    /metrics, or COS_EVENTS_METRICS_LISTEN, shows what all of its processes count.
    """
    from cos_events import metrics
    from cos_events.cli.flower import ensure_password
    from cos_events.cli.processes import check_alive, program, workers
    from cos_events.settings import get_settings, mask
    from cos_events.store.engine import explained, get_engine
    from cos_events.store.migrations import upgrade

    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, lambda *_: stopping.set())
    folder = data or home()
    folder.mkdir(parents=True, exist_ok=True)
    with available(folder, broker_url) as which:
        click.echo(f"using {which}")
        with explained():
            upgrade(get_engine())
        specs = [
            ("publisher", ["publisher"]),
            ("subscribers", ["subscriber", "activity", "graph_staging"]),
        ]
        metrics.share_counts()
        if listen := get_settings().metrics_listen:
            metrics.serve(listen)
        with ExitStack() as stack:
            started = [*stack.enter_context(workers(folder, specs))]
            if find_spec("fastapi") and find_spec("uvicorn"):
                started.append(stack.enter_context(program("api", folder, b"startup complete")))
                where = f"http://{get_settings().api_host}:{get_settings().api_port}"
            else:
                where = "not installed: pip install 'cos-events[api]'"
            if find_spec("flower"):
                who = ensure_password(folder)
                started.append(stack.enter_context(program("flower", folder, b"Visit me at")))
                port = get_settings().flower_port
                flower = f"http://{get_settings().flower_address}:{port}  {who}"
            else:
                flower = "not installed: pip install 'cos-events[flower]'"
            settings = get_settings()
            click.echo(f"database  {mask(settings.database_url)}")
            click.echo(f"channel   {mask(settings.redis_url)}")
            click.echo(f"broker    {mask(settings.broker_url)}")
            click.echo(f"api       {where}")
            click.echo(f"flower    {flower}")
            click.echo(f"logs      {folder}")
            click.echo(
                "ready; try `cos-events record FILE` and `cos-events status`; Ctrl-C ends it"
            )
            while not stopping.wait(1.0):
                check_alive(started)
        click.echo("stopped")
