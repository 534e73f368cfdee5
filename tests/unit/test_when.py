"""Moments on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest

from cos_events.cli.when import When
from cos_events.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("1.5h", timedelta(minutes=90)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(days=14)),
    ],
)
def test_a_duration_is_so_long_ago(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration
    found = When().convert(text, None, None)
    assert abs(datetime.now(UTC) - duration - found) < timedelta(seconds=5)


@pytest.mark.parametrize(
    "text", ["2026-11-25T10:00:00Z", "2026-11-25T11:00:00+01:00", "2026-11-25 10:00"]
)
def test_a_time_is_taken_as_utc_where_it_does_not_say(text: str) -> None:
    assert When().convert(text, None, None) == datetime(2026, 11, 25, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["yesterday", "7", "d", "-1d", "", "1e9d", "36501d", f"{'9' * 40}w"]
)
def test_what_is_neither_is_refused_with_examples(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a point in time: use 2026-11-25T10"):
        When().convert(text, None, None)
