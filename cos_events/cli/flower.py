"""The command `cos-events flower`."""

from __future__ import annotations

import os
import secrets
from importlib.util import find_spec
from pathlib import Path

import click

from cos_events.cli.port import usable_port
from cos_events.cli.servers import adopt_running
from cos_events.cli.worker import app_option

AUTH = "FLOWER_BASIC_AUTH"
"""The variable with `user:password`, Flower's own: `ps` would show an argument to everybody."""

MAX_TASKS = 10_000
"""How many tasks Flower remembers; its own default would take ten times the memory."""


@click.command("flower")
@click.option("--host", help="Address to listen on.  [default: FLOWER_ADDRESS, 127.0.0.1]")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    help="Port to listen on; 0 picks a free one.  [default: FLOWER_PORT, 5555]",
)
@app_option
def command(host: str | None, port: int | None, app: str) -> None:
    """Serve Celery's Flower until Ctrl-C: workers, queues, and each subscription's tasks by name.

    Asks for the user and password of FLOWER_BASIC_AUTH (user:password). Shows no payload, only how
    many events a task had, and changes nothing. Start it after the workers.
    """
    from celery.bin.celery import celery

    from cos_events.errors import ConfigurationError, CosEventsError
    from cos_events.parent import end_with_parent
    from cos_events.settings import get_settings

    adopt_running()
    if not find_spec("flower"):
        raise CosEventsError("flower is missing: pip install 'cos-events[flower]'")
    settings = get_settings()
    if settings.flower_basic_auth is None:
        raise ConfigurationError(f"Flower does not start open: set {AUTH}=user:password")
    os.environ[AUTH] = settings.flower_basic_auth.get_secret_value()
    end_with_parent()
    host = host or settings.flower_address
    options = {
        "address": host,
        "port": usable_port("FLOWER_PORT", host, settings.flower_port, port),
        "max-tasks": MAX_TASKS,
        "read-only": True,
        # A flowerconfig.py that lies about would win over the password.
        "conf": os.devnull,
    }
    args = [f"--{name}={value}" for name, value in options.items()]
    celery.main(args=["-A", app, "flower", *args], prog_name="celery")


def ensure_password(folder: Path) -> str:
    """See to it that Flower has a password; one is made, and kept in `folder`, if none is set.

    Returns:
        A phrase that says who opens Flower, and where the password is.
    """
    from cos_events.settings import get_settings

    if auth := get_settings().flower_basic_auth:
        return f"user {auth.get_secret_value().partition(':')[0]}, password in {AUTH}"
    file = folder / "flower.password"
    if not file.exists():
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as output:
            output.write(secrets.token_urlsafe(16) + "\n")
    os.environ[AUTH] = f"cos:{file.read_text().strip()}"
    get_settings.cache_clear()
    return f"user cos, password in {file}"
