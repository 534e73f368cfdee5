"""What a seed decides: which faults come when, for how long, and whom they hit."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

SECONDS_PER_FAULT = 3.5
"""How far apart faults are, about, unless the caller says how many events come in a second."""

FIRST, LAST = 0.02, 0.92
"""The part of the events within which faults begin: the last ones too shall meet some."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault that is to come.

    Attributes:
        at: how many events have been committed by then.
        kind: its name.
        seconds: how long it lasts; a kill is over when what it killed is back.
        pick: 0 to 1, which of several it hits, or how.
    """

    at: int
    kind: str
    seconds: float = 0.0
    pick: float = 0.0


def plan(
    seed: int, events: int, kinds: Mapping[str, tuple[float, float]], faults: int
) -> list[Planned]:
    """The faults of a run, in order; the same for the same arguments.

    Each kind comes as often as any other, give or take one.

    Args:
        seed: any number.
        events: how many are committed in all.
        kinds: their names, each with its shortest and longest time in seconds.
        faults: how many.
    """
    rng = random.Random(f"{seed} {events} {faults}")  # noqa: S311 - repeatable, not secret
    names: list[str] = []
    while len(names) < faults:
        names += rng.sample(sorted(kinds), len(kinds))
    first, last = FIRST * events, LAST * events
    step = (last - first) / max(1, faults)
    return [
        Planned(
            at=int(first + step * (index + rng.random())),
            kind=name,
            seconds=round(rng.uniform(*kinds[name]), 2),
            pick=round(rng.random(), 3),
        )
        for index, name in enumerate(names[:faults])
    ]


def faults_for(events: int, kinds: int) -> int:
    """How many faults a run has unless the caller says: each kind once, or one in 500 events."""
    return max(kinds, events // 500)


def rate_for(events: int, faults: int) -> float:
    """How many events a second make the faults come `SECONDS_PER_FAULT` apart, within reason."""
    return min(400.0, max(20.0, round(events / (max(1, faults) * SECONDS_PER_FAULT), 1)))
