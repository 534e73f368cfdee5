"""docs/subscribers.md lists every option with its default, and every field with its type."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

from cos_events import Envelope, subscriber
from cos_events.recording import make_envelope
from cos_events.retry import RetryPolicy

PAGE = (Path(__file__).parents[2] / "docs" / "subscribers.md").read_text()
OPTIONS, _, FIELDS = PAGE.partition("## The envelope")
IN_WORDS = {None: "none", (): "none", (Exception,): "every exception"}


def defaults() -> dict[str, object]:
    parameters = list(inspect.signature(subscriber).parameters.values())[1:-1]
    policy = (each for each in fields(RetryPolicy) if each.init)
    return {each.name: each.default for each in (*parameters, *policy)}


def rows_of(table: str) -> dict[str, str]:
    """The first two columns."""
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE))


def test_the_page_lists_every_option_with_its_default() -> None:
    expected = {name: IN_WORDS.get(default, f"`{default}`") for name, default in defaults().items()}
    assert rows_of(OPTIONS) == {**expected, "modules": "all", "event_types": "all"}


def test_the_page_lists_every_field_of_the_envelope_with_its_type() -> None:
    message = make_envelope(event_type="order_placed", data={})
    assert rows_of(FIELDS) == {
        name: f"`{type(getattr(message, name)).__name__}`" for name in Envelope.model_fields
    }
