"""Times on the command line: a moment, in ISO 8601 or as how long ago; a number of seconds."""

from __future__ import annotations

from datetime import UTC, datetime
from math import isnan
from typing import Any

import click

from cos_events.duration import LONGEST, parse_duration


class Seconds(click.FloatRange):
    """A number of seconds, from none on."""

    def __init__(self) -> None:
        super().__init__(0, LONGEST.total_seconds())

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> float:
        """The number, which `nan` is not."""
        seconds: float = super().convert(value, param, context)
        if isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, context)
        return seconds


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
                f"{value!r} is not a point in time: use 2026-11-25T10:00:00Z, 2026-11-25, "
                "or 90s, 15m, 2h, 7d for that long ago",
                param,
                context,
            )
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
