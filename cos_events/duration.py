"""Durations as people write them: `90s`, `15m`, `2h`, `7d`, `4w`."""

from __future__ import annotations

import re
from datetime import timedelta

LONGEST = timedelta(days=36_500)
"""No time in the bus is further away; PostgreSQL could not calculate with it."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def format_duration(seconds: float) -> str:
    """As `parse_duration` reads it, in the largest unit up to days that needs no fraction."""
    unit = next((each for each in "dhm" if seconds % _SECONDS[each] == 0), "s")
    return f"{seconds / _SECONDS[unit]:.12g}{unit}"


def rough_duration(seconds: float) -> str:
    """Roughly how long, in the largest unit of which there are at least two."""
    unit = next((each for each in "dhm" if seconds >= 2 * _SECONDS[each]), "s")
    return f"{int(seconds // _SECONDS[unit])} {unit}"


def parse_duration(text: str) -> timedelta | None:
    """What the text means; None if it is not a duration, or is longer than `LONGEST`."""
    found = _DURATION.fullmatch(text)
    if found is None:
        return None
    seconds = float(found[1]) * _SECONDS[found[2]]
    return timedelta(seconds=seconds) if seconds <= LONGEST.total_seconds() else None
