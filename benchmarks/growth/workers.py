"""The processes that work, and the wait for what they do."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.growth.data import scalar
from cos_events.cli.processes import running, worker
from cos_events.embedded.process import frozen
from cos_events.errors import CosEventsError

PATIENCE = 180.0


@contextmanager
def processes(
    publishers: int, subscriptions: Sequence[str]
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Publishers and one worker for all subscriptions; yields what stops publishers a while."""
    quiet = ("-A", "benchmarks.app", "-l", "WARNING", "--without-mingle", "--without-gossip")
    specs = [
        worker(f"publisher{number}", "publisher", *quiet, "-n", f"publisher{number}@%h")
        for number in range(publishers)
    ]
    if subscriptions:
        specs.append(worker("handlers", "subscriber", *subscriptions, *quiet, "-n", "handlers@%h"))
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), specs) as started,
    ):
        yield partial(frozen, *(each.process.pid for each in started[:publishers]))


def await_delivered(deliveries: int) -> float:
    """Seconds from the first publication until so many deliveries are noted."""
    had = "SELECT count(*) FROM cos_events.delivery WHERE state = 'delivered'"
    await_all(lambda: deliveries - scalar(had))
    return published_for("clock_timestamp()")


def published_for(until: str) -> float:
    """Seconds since the first publication."""
    seconds = f"extract(epoch FROM {until} - min(published_at))"
    return float(scalar(f"SELECT {seconds} FROM cos_events.outbox"))  # noqa: S608 - ours


def await_all(left: Callable[[], int]) -> None:
    """Wait until nothing is left."""
    deadline = time.monotonic() + PATIENCE
    while found := left():
        if time.monotonic() > deadline:
            raise CosEventsError(f"{found:,} were left after {PATIENCE:.0f} s")
        time.sleep(0.05)
