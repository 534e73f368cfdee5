"""The command `cos-events config`."""

from __future__ import annotations

import os

import click

from cos_events.cli.output import json_option, print_json, print_table

OF_COMMANDS = {"COS_EVENTS_HOME", "COS_EVENTS_APP", "COS_EVENTS_PARENT"}
"""Variables that commands know besides the settings."""

Value = str | float | bool | None


@click.command("config")
@json_option
def command(as_json: bool) -> None:
    """Show every setting in force, and where its value came from.

    Secrets are masked. What each means: docs/configuration.md. If `cos-events up` is running, its
    servers are shown; for their full URLs: `cos-events env`.
    """
    from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

    from cos_events.cli.servers import URLS, adopt_running
    from cos_events.settings import Settings, get_settings

    adopted = URLS if adopt_running() else ()
    settings = get_settings()
    sources = {
        **{name.upper(): ".env" for name in DotEnvSettingsSource(Settings)()},
        **{name.upper(): "environment" for name in EnvSettingsSource(Settings)()},
        **dict.fromkeys(adopted, "cos-events up"),
    }
    values = {
        (info.alias or field).upper(): _shown(field, getattr(settings, field))
        for field, info in Settings.model_fields.items()
    }
    if as_json:
        print_json(
            {
                name: {"value": value, "from": sources.get(name, "default")}
                for name, value in values.items()
            }
        )
    else:
        print_table(
            ["setting", "value", "from"],
            [[name, _text(value), sources.get(name, "default")] for name, value in values.items()],
        )
    given = {name.upper() for name in {*os.environ, *DotEnvSettingsSource(Settings)()}}
    for name in sorted(given - {*values} - OF_COMMANDS):
        if name.startswith("COS_EVENTS_"):
            click.echo(f"{name} is set, but there is no such setting: is it misspelt?", err=True)


def _shown(field: str, value: object) -> Value:
    """A duration as one would set it; secrets masked."""
    from cos_events.duration import format_duration
    from cos_events.settings import mask

    if field == "retain_for":
        return "forever" if value is None else format_duration(float(str(value)))
    return value if value is None or isinstance(value, int | float) else mask(str(value))


def _text(value: Value) -> str:
    """As one would set it; `none` where there is none."""
    plain = value is None or isinstance(value, bool)
    return str(value).lower() if plain else str(value)
