"""docs/subscribers.md lists every option with its default."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

from cos_events import subscriber
from cos_events.retry import RetryPolicy

PAGE = Path(__file__).parents[2] / "docs" / "subscribers.md"
IN_WORDS = {None: "none", (): "none", (Exception,): "every exception"}


def defaults() -> dict[str, object]:
    parameters = list(inspect.signature(subscriber).parameters.values())[1:-1]
    policy = (each for each in fields(RetryPolicy) if each.init)
    return {each.name: each.default for each in (*parameters, *policy)}


def test_the_page_lists_every_option_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", PAGE.read_text(), re.MULTILINE))
    expected = {name: IN_WORDS.get(default, f"`{default}`") for name, default in defaults().items()}
    assert rows == {**expected, "modules": "all", "event_types": "all"}
