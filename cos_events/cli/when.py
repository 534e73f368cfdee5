"""A moment on the command line: ISO 8601, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

_AGO = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def parse_duration(text: str) -> timedelta | None:
    """`90s`, `15m`, `2h`, `7d` or `4w`; None if it is none of these."""
    found = _AGO.fullmatch(text)
    if found is None:
        return None
    try:
        return timedelta(seconds=float(found[1]) * _SECONDS[found[2]])
    except OverflowError:
        return None


class When(click.ParamType[datetime]):
    """An aware moment: `2026-11-25T10:00:00Z`, `2026-11-25` (UTC), or `2h` for two hours ago."""

    name = "when"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> datetime:
        """What the text means, counted from now."""
        if isinstance(value, datetime):
            return value
        if (ago := parse_duration(value)) is not None:
            return datetime.now(UTC) - ago
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is no moment: use 2026-11-25T10:00:00Z, 2026-11-25, "
                "or 90s, 15m, 2h, 7d for so long ago",
                param,
                context,
            )
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
