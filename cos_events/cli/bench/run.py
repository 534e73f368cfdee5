"""A whole run: every measurement, the bus and its floor by turns, in rounds."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

from cos_events.cli.bench import stages
from cos_events.cli.bench.app import BATCH, SESSION, SINGLE
from cos_events.cli.bench.application import Application
from cos_events.cli.bench.figures import Bar, Figure
from cos_events.cli.bench.servers import Stage, stage
from cos_events.cli.bench.stages import Latencies, Sustained
from cos_events.embedded import BrokerName
from cos_events.embedded.process import frozen

RATE = 200.0
"""Commits a second where latency is measured: far from the limit of anything."""

OFFERED = {"single": (1_100, 1), "ten": (2_200, 10)}
"""Events a second, and in a commit, under sustained load: a tenth more than the bars ask for, since
what is on its way at the end has not been delivered."""

OnStep = Callable[[str], None]
"""Called with what is measured next."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: of each measurement but the long ones.
        paced: seconds at `RATE`, a round.
        drained: events in the outbox, a round.
        by_hand: the same for Celery as people write it.
        sustained: seconds of each long measurement.
    """

    rounds: int
    paced: float
    drained: int
    by_hand: int
    sustained: float

    @property
    def steps(self) -> int:
        """How many measurements there are."""
        return self.rounds * 7 + 2

    @property
    def events(self) -> int:
        """How many event numbers that takes, at most."""
        a_round = 5 * RATE * self.paced + 3 * self.drained + self.by_hand
        return int(self.rounds * a_round + 4_000 * self.sustained) + 3_000


FULL = Size(rounds=3, paced=10, drained=20_000, by_hand=3_000, sustained=60)
QUICK = Size(rounds=1, paced=3, drained=5_000, by_hand=600, sustained=6)


def _figures(broker: BrokerName) -> dict[str, Figure]:
    drained = 5_000.0 if broker == "redis" else 4_000.0
    figures = [
        Figure(
            "hook_us",
            "hook in the committing thread, p50 (floor: a raw LPUSH)",
            "us",
            bars=(Bar("<=", 0.15, of_ratio=True),),
        ),
        Figure(
            "hook_frozen_us",
            "the same, the broker frozen",
            "us",
            bars=(Bar("<=", 0.15, of_ratio=True),),
        ),
        Figure(
            "commit_to_channel_ms",
            "commit to channel, p95 at 200/s",
            "ms",
            bars=(Bar("<=", 2, of_ratio=True),),
        ),
        Figure(
            "worst_to_channel_ms",
            "commit to channel, worst at 200/s",
            "ms",
            bars=(Bar("<=", 100),),
        ),
        Figure(
            "commit_to_handler_ms",
            "commit to handler, p95 at 200/s",
            "ms",
            bars=(Bar("<=", 3, of_ratio=True), Bar("<=", 5)),
        ),
        Figure("by_hand_per_s", "drain, Celery as people write it", "events/s"),
        Figure(
            "drain_batch_per_s",
            "drain, a hundred events a call (floor: by hand)",
            "events/s",
            bars=(Bar(">=", drained), Bar(">=", 10, of_ratio=True)),
        ),
        Figure(
            "drain_single_per_s",
            "drain, one event a call (floor: by hand)",
            "events/s",
            bars=(Bar(">=", 2_500),),
        ),
        Figure(
            "drain_session_per_s",
            "drain, one event a call in its session (floor: by hand)",
            "events/s",
            bars=(Bar(">=", 1_000),),
        ),
        Figure(
            "sustained_single_per_s",
            "sustained, one event a commit",
            "events/s",
            bars=(Bar(">=", 1_000),),
        ),
        Figure("growth_single_per_s", "its backlog's growth", "events/s", bars=(Bar("<=", 10),)),
        Figure(
            "sustained_ten_per_s",
            "sustained, ten events a commit",
            "events/s",
            bars=(Bar(">=", 2_000),),
        ),
        Figure("growth_ten_per_s", "its backlog's growth", "events/s", bars=(Bar("<=", 20),)),
    ]
    return {each.key: each for each in figures}


@dataclass
class Result:
    """What a run found.

    Attributes:
        figures: each with its floor and its bar.
        latencies: of the last round: with the bus, and raw.
        sustained: with one event a commit, and with ten.
        memory: of each process and its children, in MiB: at the beginning, and at the end.
    """

    figures: dict[str, Figure]
    latencies: dict[str, Latencies] = field(default_factory=dict)
    sustained: dict[str, Sustained] = field(default_factory=dict)
    memory: dict[str, tuple[float, float]] = field(default_factory=dict)


class BenchRun:
    """Measures on private servers.

    Parameters:
        broker: which one is the broker.
        size: how much.
        on_step: told before each measurement.
    """

    def __init__(self, broker: BrokerName, size: Size, on_step: OnStep = lambda _: None) -> None:
        self._broker: BrokerName = broker
        self._size = size
        self._on_step = on_step
        self._next = 0

    def run(self) -> Result:
        """All of it.

        Raises:
            CosEventsError: servers or workers could not be started, or events did not arrive.
        """
        result = Result(_figures(self._broker))
        self._on_step("starting servers and workers")
        with (
            stage(self._broker, self._size.events) as on,
            closing(Application(on.engine, self._size.events)) as application,
        ):
            # Connections, caches and topology first.
            for subscription in (BATCH, SINGLE, SESSION):
                stages.drain(on, subscription, self._take(200))
            stages.latency(on, application, self._take(100), RATE, raw=False)
            stages.latency(on, application, self._take(100), RATE, raw=True)
            before = _memory(on)
            for _ in range(self._size.rounds):
                self._round(on, application, result)
            for key, (rate, per_commit) in OFFERED.items():
                self._on_step(f"{rate:,} events/s for {self._size.sustained:.0f} s")
                numbers = self._take(int(rate * self._size.sustained))
                found = stages.sustain(on, application, numbers, rate, per_commit)
                result.sustained[key] = found
                result.figures[f"sustained_{key}_per_s"].values.append(found.delivered)
                result.figures[f"growth_{key}_per_s"].values.append(found.growth)
            after = _memory(on)
            result.memory = {name: (before[name], after[name]) for name in before}
        return result

    def _round(self, on: Stage, application: Application, result: Result) -> None:
        figures, paced = result.figures, int(RATE * self._size.paced)
        self._on_step("the hook")
        bus, floor = stages.hook(application, self._take(paced), RATE)
        figures["hook_us"].values.append(bus)
        figures["hook_us"].floors.append(floor)
        self._on_step("the hook, the broker frozen")
        with frozen(on.broker.pid):
            bus, _ = stages.hook(application, self._take(paced), RATE, only_bus=True)
        figures["hook_frozen_us"].values.append(bus)
        figures["hook_frozen_us"].floors.append(floor)
        stages.await_all(on, range(self._next - 2 * paced, self._next))
        stages.await_channel(on, application, self._take)
        self._on_step(f"latency at {RATE:.0f}/s")
        for name in ("floor", "bus"):
            numbers = self._take(paced)
            found = stages.latency(on, application, numbers, RATE, raw=name == "floor")
            result.latencies[name] = found
            worst = figures["worst_to_channel_ms"]
            (worst.values if name == "bus" else worst.floors).append(max(found.to_channel))
            for key, value in zip(("channel", "handler"), found.p95(), strict=True):
                figure = figures[f"commit_to_{key}_ms"]
                (figure.values if name == "bus" else figure.floors).append(value)
        self._on_step("drain, Celery as people write it")
        by_hand = stages.drain_by_hand(on, self._take(self._size.by_hand), on.folder)
        figures["by_hand_per_s"].values.append(by_hand)
        for key, subscription in (("batch", BATCH), ("single", SINGLE), ("session", SESSION)):
            self._on_step(f"drain to {subscription}")
            figure = figures[f"drain_{key}_per_s"]
            figure.values.append(stages.drain(on, subscription, self._take(self._size.drained)))
            figure.floors.append(by_hand)

    def _take(self, count: int) -> range:
        taken = range(self._next, self._next + count)
        self._next = taken.stop
        return taken


def _memory(on: Stage) -> dict[str, float]:
    """Resident memory of each worker with its pool, in MiB."""
    listed = subprocess.run(  # noqa: S603 - the system's own
        [shutil.which("ps") or "/bin/ps", "-e", "-o", "pgid=,rss="],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    groups = {each.process.pid: name for name, each in on.processes.items()}
    found = dict.fromkeys(on.processes, 0.0)
    for line in listed.splitlines():
        group, kib = map(int, line.split())
        if group in groups:
            found[groups[group]] += kib / 1024
    return found
