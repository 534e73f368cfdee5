"""The command `cos-events dlq replay`."""

from __future__ import annotations

import json
import os
import sys
from typing import IO, TYPE_CHECKING, Any
from uuid import UUID

import click

from cos_events.cli.dlq.options import filters
from cos_events.cli.name import SubscriptionName
from cos_events.cli.output import json_option, print_json, print_table, say_left_out
from cos_events.cli.progress import progress_bar
from cos_events.cli.selecting import doubt
from cos_events.cli.servers import adopt_running
from cos_events.cli.worker import app_option

if TYPE_CHECKING:
    from cos_events.store.dead_letters import Filter


@click.command("replay")
@click.argument("subscription", type=SubscriptionName())
@filters
@click.option("--limit", type=click.IntRange(1), help="At most this many, of the oldest events.")
@click.option("--dry-run", is_flag=True, help="Only try: run the handler and roll back.")
@app_option
@click.option("--edit", type=click.UUID, metavar="EVENT", help="Correct this event's data first.")
@click.option(
    "--data", type=click.File("rb"), help="With --edit: the new data, instead of $EDITOR."
)
@json_option
def replay(  # noqa: PLR0913 - the options
    *,
    subscription: str,
    limit: int | None,
    dry_run: bool,
    app: str,
    edit: UUID | None,
    data: IO[bytes] | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Run dead letters again, from their first attempt.

    They follow as the subscription's queue has room, even if the broker is down or has lost its
    queues. --dry-run runs today's handler for each in a transaction that is rolled back, and says
    how each would end; it exits with 1 if any would fail. --edit runs it with a corrected payload;
    the outbox keeps what was recorded.
    """
    from cos_events.dead_letters import replaying
    from cos_events.dead_letters.finding import require
    from cos_events.store.dead_letters import Filter

    if data is not None and edit is None:
        raise click.UsageError("--data goes with --edit EVENT: whose new data is it?")
    if dry_run and edit is not None:
        raise click.UsageError("--dry-run changes nothing, --edit does: give one of them")
    adopt_running()
    which = Filter(subscription, **given)
    require(which)
    if dry_run:
        _rehearse(subscription, which, limit, app, as_json)
        return
    if edit is not None:
        _edit(subscription, edit, data)
        which = Filter(subscription, **{**given, "event_ids": (edit,)})
    total = replaying.count(which, limit)
    if not total:
        doubt(event_type=which.event_type)
    with progress_bar("replaying", total) as done:
        replayed = replaying.replay(which, limit, done)
    say_left_out(replaying.count(which, total - len(replayed)))
    if as_json:
        print_json({"subscription": subscription, "replayed": replayed})
    else:
        click.echo(f"{len(replayed):,} replayed to {subscription}")


def _edit(subscription: str, event: UUID, data: IO[bytes] | None) -> None:
    from cos_events.dead_letters.finding import find
    from cos_events.dead_letters.replaying import correct
    from cos_events.errors import InvalidPayload, SubscriptionError
    from cos_events.store.dead_letters import Filter

    letter = next(find(Filter(subscription, [event])), None)
    if letter is None:
        raise SubscriptionError(f"{subscription} has no dead letter {event}")
    latest = letter.correction or letter.envelope
    text: str | bytes | None
    if data is not None:
        text = data.read()
    elif not (sys.stdin.isatty() or {"VISUAL", "EDITOR"} & os.environ.keys()):
        raise click.UsageError("there is no terminal to edit on: give the new data with --data")
    else:
        text = click.edit(json.dumps(latest.data, indent=2, ensure_ascii=False), extension=".json")
        if text is None:
            raise SubscriptionError("nothing was changed, nothing is replayed")
    try:
        corrected = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"the new data is not JSON: {error}; nothing is replayed") from error
    if not isinstance(corrected, dict):
        raise InvalidPayload("the new data must be a JSON object; nothing is replayed")
    correct(letter, corrected)


def _rehearse(subscription: str, which: Filter, limit: int | None, app: str, as_json: bool) -> None:
    from cos_events.cli.worker import find_subscribers
    from cos_events.dead_letters.finding import find
    from cos_events.dead_letters.replaying import count
    from cos_events.rehearsal import rehearse

    (subscriber,) = find_subscribers(app, [subscription])
    endings = []
    with progress_bar("trying", count(which, limit)) as done:
        for each in find(which, limit):
            ending = rehearse(subscriber, each.correction or each.envelope)
            endings.append({"event_id": str(each.event_id), "ending": ending})
            done(1)
    if as_json:
        print_json(endings)
    else:
        rows = [list(each.values()) for each in endings]
        print_table(["event", "would be"], rows, none="no dead letters")
    if any(each["ending"] != "delivered" for each in endings):
        raise SystemExit(1)
