"""A question before what cannot be undone."""

from __future__ import annotations

import sys

import click


def ask(question: str) -> None:
    """Go on only after a yes.

    Raises:
        click.Abort: the answer is another one.
        click.ClickException: nobody can answer, because there is no terminal.
    """
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo(err=True)
        raise click.ClickException("there is no terminal to answer on: use --yes") from None
    if not agreed:
        raise click.Abort
