"""The command `cos-events listen`."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from cos_events.cli.output import for_people
from cos_events.cli.servers import adopt_running

if TYPE_CHECKING:
    from cos_events.pubsub import ReceivedMessage

LONGEST_ON_TERMINAL = 200
"""Characters of an event's content that a terminal shows."""


@click.command("listen")
@click.option("--module", help="Only events of this source module.")
@click.option("--event-type", help="Only events of this type.")
@click.option("-n", "--count", type=click.IntRange(1), help="Stop after this many events.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines: the envelopes.")
def command(module: str | None, event_type: str | None, count: int | None, as_json: bool) -> None:
    """Print events live, as publishers broadcast them, until Ctrl-C.

    One line each: when it was heard, its module, type, id and content (on a terminal, its
    beginning). What is published while nobody is listening is not shown: `cos-events show` and
    `verify` know all events. It changes nothing, and takes no event from a subscription.
    """
    from cos_events.pubsub import subscribe_to_channel_sync
    from cos_events.settings import get_settings, mask
    from cos_events.topology import channel_name

    adopt_running()
    channel = channel_name(module or "*")

    def say_listening() -> None:
        click.echo(f"listening to {channel} on {mask(get_settings().redis_url)}", err=True)

    seen = 0
    try:
        for message in subscribe_to_channel_sync(channel, on_subscribed=say_listening):
            if event_type in (None, _type_of(message)):
                seen += 1
                click.echo(_json(message) if as_json else _line(message))
            if seen == count:
                return
    except KeyboardInterrupt:
        click.echo(f"\n{seen:,} heard", err=True)


def _type_of(message: ReceivedMessage) -> str | None:
    return getattr(message.content, "event_type", None)


def _json(message: ReceivedMessage) -> str:
    # Encoded anew: it may have been published with line feeds in it.
    return json.dumps(json.loads(message.data))


def _line(message: ReceivedMessage) -> str:
    content = json.loads(message.data)
    if _type_of(message) is None:
        names = [json.dumps(message.channel)]
    else:
        names = [content["source_module"], content["event_type"], content["base_log_id"]]
        content = content["data"]
    shown = json.dumps(content)
    if sys.stdout.isatty() and len(shown) > LONGEST_ON_TERMINAL:
        shown = f"{shown[:LONGEST_ON_TERMINAL]} …"
    return "  ".join([for_people(datetime.now(UTC)), *names, shown])
