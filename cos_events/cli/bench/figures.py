"""The figures of a run, each beside its floor and its bar."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Aim = Literal["<=", ">="]


@dataclass(frozen=True)
class Bar:
    """What a figure should reach.

    Attributes:
        aim: whether smaller or larger is better.
        limit: of the value, or of its ratio to the floor.
        of_ratio: which of them.
    """

    aim: Aim
    limit: float
    of_ratio: bool = False

    def __str__(self) -> str:
        return f"{self.aim} {self.limit:g}{' x floor' if self.of_ratio else ''}"


@dataclass
class Figure:
    """One thing that was measured, once a round.

    Attributes:
        key: its name for scripts.
        what: its name for people.
        unit: of value and floor.
        values: one of each round.
        floors: of the same rounds, what the servers allow without the bus; or empty.
        bars: what it should reach.
    """

    key: str
    what: str
    unit: str
    values: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)
    bars: tuple[Bar, ...] = ()

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.values)

    @property
    def floor(self) -> float | None:
        """The median of the rounds; None without a floor."""
        return statistics.median(self.floors) if self.floors else None

    @property
    def ratio(self) -> float | None:
        """The median of each round's value divided by its floor."""
        pairs = zip(self.values, self.floors, strict=False)
        return statistics.median(v / f for v, f in pairs) if self.floors else None

    def met(self) -> bool | None:
        """Whether every bar is reached; None without one."""
        return all(map(self._reaches, self.bars)) if self.bars else None

    def _reaches(self, bar: Bar) -> bool:
        found = self.ratio if bar.of_ratio else self.value
        if found is None:
            return False
        return found <= bar.limit if bar.aim == "<=" else found >= bar.limit

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "bars": [str(each) for each in self.bars],
            "value": self.value,
            "floor": self.floor,
            "ratio": self.ratio,
            "met": self.met(),
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
