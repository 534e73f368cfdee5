"""`cos-events …`: each command is one module of this package, loaded when it is called."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

COMMANDS = (
    "api",
    "bench",
    "config",
    "db",
    "demo",
    "dlq",
    "env",
    "faults",
    "flower",
    "listen",
    "record",
    "replay",
    "show",
    "status",
    "subscriptions",
    "up",
    "verify",
    "worker",
)


class _Commands(click.Group):
    """Imports a command when it is asked for; a user's mistake ends in a sentence."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"cos_events.cli.{name}").command
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(context, args)
        except click.UsageError as error:
            raise click.UsageError(
                f"{error.message} Commands: {', '.join(COMMANDS)}.", context
            ) from None

    def invoke(self, context: click.Context) -> Any:
        from cos_events.errors import CosEventsError

        try:
            return super().invoke(context)
        except CosEventsError as error:
            raise click.ClickException(str(error)) from error
        except UnicodeEncodeError as error:
            if not error.reason.startswith("surrogates"):
                raise
            raise click.ClickException(f"{error.object!a} is not UTF-8") from error
        except KeyboardInterrupt:
            # As a shell says it. 1 would mean that the command has found something wrong.
            click.echo("Aborted!", err=True)
            sys.exit(130)
        except BrokenPipeError:
            # The reader of a pipe (`| head`) has seen enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cos-events", prog_name="cos-events")
def main() -> None:
    """The event bus that loses nothing: if the transaction committed, every subscription runs.

    Start with `cos-events demo`: it needs no server. Settings come from the environment:
    DATABASE_URL, REDIS_URL, BROKER_URL and others (see docs/configuration.md). Without a
    DATABASE_URL, commands use the servers of a running `cos-events up`.

    Completion: eval "$(_COS_EVENTS_COMPLETE=bash_source cos-events)" (or zsh_source, fish_source).
    """
