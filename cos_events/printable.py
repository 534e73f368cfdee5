"""What somebody else wrote, fit for a terminal and a log."""

from __future__ import annotations

import re

_STEERING = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters, and those that change the line or the direction of what follows."""


def printable(text: str) -> str:
    """The text on one line, in which nothing steers a terminal or forges a line of a log."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
