"""A table at the end: each figure beside its floor, from the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cos_events.cli.bench.figures import percentile
from cos_events.embedded import Servers, servers

Note = Callable[[str, str, list[float]], None]
_NOTED = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def private() -> Iterator[Servers]:
    """A private PostgreSQL and Valkey."""
    with servers() as running:
        yield running


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Have a line in the table: what was measured, in which unit, and all values."""

    def add(what: str, unit: str, values: list[float]) -> None:
        p50, p95 = percentile(values, 50), percentile(values, 95)
        request.config.stash.setdefault(_NOTED, []).append(
            f"{what:<58} {p50:>9.3f} {p95:>9.3f} {unit}"
        )

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if lines := terminalreporter.config.stash.get(_NOTED, []):
        terminalreporter.section("figures and their floors")
        terminalreporter.line(f"{'':<58} {'p50':>9} {'p95':>9}")
        for line in lines:
            terminalreporter.line(line)
