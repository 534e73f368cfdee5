"""A subscription's name on the command line; a shell completes it."""

from __future__ import annotations

from contextlib import suppress

import click
from click.shell_completion import CompletionItem

from cos_events.cli.servers import adopt_running


class SubscriptionName(click.ParamType[str]):
    """Any text: whether there is such a subscription is for the command to say."""

    name = "subscription"

    def shell_complete(
        self, _context: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so; none where the database does not answer."""
        from cos_events.store import subscriptions
        from cos_events.store.engine import get_engine

        # A completion is not the place for an error message, whatever is wrong.
        with suppress(Exception):
            adopt_running()
            with get_engine().connect() as connection:
                names = [each.name for each in subscriptions.load(connection)]
            return [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return []
