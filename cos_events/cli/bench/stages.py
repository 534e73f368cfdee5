"""What is measured: each function is one round of one thing."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cos_events.cli.bench import by_hand
from cos_events.cli.bench.app import BATCH, SINGLE
from cos_events.cli.bench.application import Application, paced
from cos_events.cli.bench.events import fill_outbox
from cos_events.cli.bench.figures import percentile
from cos_events.cli.bench.servers import Stage
from cos_events.cli.processes import Spec, running
from cos_events.embedded.process import frozen
from cos_events.errors import CosEventsError
from cos_events.settings import get_settings

PATIENCE = 120.0
"""Seconds without an event handled, after which a run gives up."""


def hook(
    application: Application, numbers: range, rate: float, *, only_bus: bool = False
) -> tuple[float, float]:
    """Commits at a pace, by turns with the bus and with a raw LPUSH.

    Returns:
        The medians of what both cost the committing thread, in microseconds; 0 for the push if
        it is left out.
    """
    for each in application.hook_costs.values():
        each.clear()

    def one(turn: int) -> None:
        if turn % 2 and not only_bus:
            application.commit_raw(numbers[turn], is_hook=True)
        else:
            application.commit(SINGLE, range(numbers[turn], numbers[turn] + 1))

    paced(rate, len(numbers) / rate, one)
    bus, floor = (application.hook_costs[each] for each in ("bus", "floor"))
    return 1e6 * median(bus), 1e6 * median(floor) if floor else 0.0


@dataclass(frozen=True)
class Latencies:
    """Milliseconds from the commit: to each channel message, and to each handler call."""

    to_channel: list[float]
    to_handler: list[float]

    def p95(self) -> tuple[float, float]:
        """Of both."""
        return percentile(self.to_channel, 95), percentile(self.to_handler, 95)


def latency(
    stage: Stage, application: Application, numbers: range, rate: float, *, raw: bool
) -> Latencies:
    """Commits these events at a pace, one a transaction, and waits for them."""

    def one(turn: int) -> None:
        if raw:
            application.commit_raw(numbers[turn])
        else:
            application.commit(SINGLE, range(numbers[turn], numbers[turn] + 1))

    paced(rate, len(numbers) / rate, one)
    await_all(stage, numbers)
    _await(lambda: stage.heard.done(numbers.start, len(numbers)), len(numbers))
    committed = application.committed[numbers.start : numbers.stop]
    heard, handled = (
        marks.times(numbers.start, len(numbers)) for marks in (stage.heard, stage.handled)
    )
    return Latencies(_after(committed, heard), _after(committed, handled))


def drain(stage: Stage, subscription: str, numbers: range) -> float:
    """Fills the outbox while the publisher stands still; events a second from then to the end."""
    with frozen(stage.processes["publisher"].process.pid):
        with stage.engine.begin() as connection:
            fill_outbox(connection, subscription, numbers.start, len(numbers))
        # Its next sweep is due then: to wait for it, as long as it may be, is not to drain.
        time.sleep(get_settings().relay_interval)
    return _rate(stage, numbers, time.monotonic())


def drain_by_hand(stage: Stage, numbers: range, log: Path) -> float:
    """The same for Celery as people write it: from a queue full of publish tasks."""
    options = ["worker", "-c", "2", "--without-mingle", "--without-gossip"]
    command = ["celery", "-A", by_hand.__name__, *options]
    with running(log, [Spec("by-hand", command)]) as (worker,):
        # Its pool too: it leads a group of its own.
        with frozen(-worker.process.pid):
            by_hand.fill_queue(numbers)
        return _rate(stage, numbers, time.monotonic())


@dataclass(frozen=True)
class Sustained:
    """A load over time.

    Attributes:
        committed: events a second that the application committed.
        delivered: events a second that were handled in the same time.
        growth: events a second by which the backlog grew in the second half.
        backlog: at each second, events that were committed and not yet handled.
    """

    committed: float
    delivered: float
    growth: float
    backlog: list[int]


def sustain(
    stage: Stage, application: Application, numbers: range, rate: float, per_commit: int
) -> Sustained:
    """Commits these at a pace, the application in this process, and looks each second.

    Where the application falls behind its pace, those that are late at the end are left out.
    """
    backlog: list[int] = []
    begun = time.monotonic()

    def one(turn: int) -> None:
        first = numbers.start + turn * per_commit
        application.commit(BATCH, range(first, first + per_commit))
        if time.monotonic() - begun >= len(backlog) + 1:
            done = first + per_commit - numbers.start
            backlog.append(done - stage.handled.done(numbers.start, done))

    seconds = len(numbers) / rate
    commits = paced(rate / per_commit, seconds, one, until=seconds)
    spent = time.monotonic() - begun
    numbers = range(numbers.start, numbers.start + commits * per_commit)
    delivered = stage.handled.done(numbers.start, len(numbers))
    await_all(stage, numbers)
    late = backlog[len(backlog) // 2 :]
    growth = (late[-1] - late[0]) / (len(late) - 1) if len(late) > 1 else 0.0
    return Sustained(len(numbers) / spent, delivered / spent, growth, backlog)


def await_channel(stage: Stage, application: Application, take: Callable[[int], range]) -> None:
    """Commit events, one after another, until the channel has one.

    After an outage that it met the publisher leaves the channel alone for some seconds.

    Args:
        stage: where.
        application: what commits them.
        take: gives so many new event numbers.

    Raises:
        CosEventsError: none came for long.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        numbers = take(1)
        application.commit(SINGLE, numbers)
        await_all(stage, numbers)
        waited = time.monotonic() + 0.2
        while time.monotonic() < waited:
            if stage.heard.done(numbers.start, 1):
                return
            time.sleep(0.02)
    raise CosEventsError(f"nothing came on the channel for {PATIENCE} s")


def await_all(stage: Stage, numbers: range) -> None:
    """Wait until all of these are handled.

    Raises:
        CosEventsError: nothing came any more.
    """
    _await(lambda: stage.handled.done(numbers.start, len(numbers)), len(numbers))


def _await(done: Callable[[], int], wanted: int) -> None:
    before, moved_at = -1, time.monotonic()
    while (now := done()) < wanted:
        if now != before:
            before, moved_at = now, time.monotonic()
        if time.monotonic() > moved_at + PATIENCE:
            raise CosEventsError(f"{now:,} of {wanted:,} events came, then none for {PATIENCE} s")
        time.sleep(0.02)


def _rate(stage: Stage, numbers: range, begun: float) -> float:
    await_all(stage, numbers)
    return len(numbers) / (max(stage.handled.times(numbers.start, len(numbers))) - begun)


def _after(begun: Sequence[float], ended: array[float]) -> list[float]:
    return [1000 * (end - begin) for begin, end in zip(begun, ended, strict=True)]
