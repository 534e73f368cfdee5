"""Peers side by side: the same work, on the same servers, by turns.

    python benchmarks/peers/run.py --broker redis

Each peer's application commits one row an event and enqueues it as the peer's documentation says;
its worker's handler notes when it was called. Measured in rounds, one peer after another, medians
shown: from the commit to the handler at 200 commits a second; what the peer costs the committing
thread an event, in the transaction (row) and after it (hook); events a second from a queue that was
filled while the workers stood still.
The peers run in environments of their own, made at the first run from pinned versions. Only ratios
within one run compare.
"""

from __future__ import annotations

import argparse
import fcntl
import platform
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.catalogue import CATALOGUE, Peer
from benchmarks.peers.environments import python_of
from benchmarks.peers.measuring import BURST, PROBES, RATE, WARM_UP, Figures, Round
from benchmarks.peers.work import COMMITTED, HANDLED, Base
from cos_events.cli.bench.marks import Marks
from cos_events.cli.interrupt import cleaning_up
from cos_events.cli.output import print_json, print_table
from cos_events.cli.servers import use
from cos_events.embedded import (
    BrokerName,
    EmbeddedPostgres,
    EmbeddedRabbitMQ,
    EmbeddedValkey,
    own_folder,
)
from cos_events.embedded.server import Server
from cos_events.errors import CosEventsError
from cos_events.store.engine import get_engine
from cos_events.store.migrations import upgrade


@dataclass
class Result:
    """What was found of one peer.

    Attributes:
        peer: which.
        rounds: one of each round that succeeded.
        failure: why it cannot be run; then it is left out of the rounds that follow.
    """

    peer: Peer
    rounds: list[Figures] = field(default_factory=list)
    failure: str = ""

    def medians(self) -> Figures:
        """Of all rounds."""
        return Figures(*map(median, zip(*map(astuple, self.rounds), strict=True)))

    def row(self) -> list[str]:
        """For the table."""
        if self.failure:
            return [self.peer.shown, "", "", "", "", "", self.failure.splitlines()[-1]]
        found = self.medians()
        shown = [f"{found.p50:.1f}", f"{found.p95:.1f}"]
        shown += [f"{found.row:.0f}", f"{found.hook:.0f}", f"{found.drain:,.0f}"]
        return [self.peer.shown, *shown, self.peer.settings]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        medians = None if self.failure else asdict(self.medians())
        return {**asdict(self), "medians": medians}


class Numbers:
    """The numbers of events: each is given out once."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> range:
        """So many new ones."""
        taken = range(self._next, self._next + count)
        self._next = taken.stop
        return taken


@contextmanager
def servers(broker: BrokerName, folder: Path) -> Iterator[None]:
    """Private ones, with the tables of cos-events, named in the environment."""
    with ExitStack() as endings:
        postgres = EmbeddedPostgres(folder / "postgres", secrets.token_urlsafe(16))
        valkey = EmbeddedValkey(folder / "redis", secrets.token_urlsafe(16))
        started: list[Server] = [postgres, valkey]
        if broker == "rabbitmq":
            started.append(EmbeddedRabbitMQ(folder / "broker", secrets.token_urlsafe(16)))
        for server in started:
            endings.callback(server.stop)
            server.start()
        # Not every client takes an empty last part for the default virtual host.
        url = started[-1].url.removesuffix("//")
        use(
            database_url=postgres.url,
            redis_url=valkey.url,
            broker_url=f"{url}/%2F" if broker == "rabbitmq" else url,
        )
        upgrade(get_engine())
        Base.metadata.create_all(get_engine())
        yield


@contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """While the body runs nobody else who asks for this file's lock measures."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def failing(result: Result) -> Iterator[None]:
    """What the body cannot do is the peer's failure, not the run's."""
    try:
        yield
    except (CosEventsError, OSError, subprocess.SubprocessError) as error:
        result.failure = str(error)
        print(f"{result.peer.shown}: {error}", file=sys.stderr)


def run(given: argparse.Namespace) -> list[Result]:
    """Measure."""
    results = [
        Result(each)
        for each in CATALOGUE
        if given.broker in each.brokers and (not given.only or each.name in given.only)
    ]
    for each in results:
        with failing(each):
            if each.peer.requirements:
                python_of(each.peer.requirements)
    a_round = 1 + PROBES + BURST + WARM_UP + int(RATE * given.seconds) + given.events
    with own_folder() as home, servers(given.broker, home.path):
        folder = home.path / "peers"
        folder.mkdir()
        for name in (COMMITTED, HANDLED):
            Marks.make(folder / name, given.rounds * len(results) * a_round)
        numbers = Numbers()
        for number in range(given.rounds):
            with alone(given.lock):
                for result in results:
                    if not result.failure:
                        print(f"round {number + 1}: {result.peer.shown}", file=sys.stderr)
                        with failing(result), Round.of(result.peer, folder, numbers.take) as on:
                            result.rounds.append(on.measure(given.seconds, given.events))
    return results


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [each.name for each in CATALOGUE]
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], default="redis")
    parser.add_argument("--events", type=int, default=3_000, help="in the full queue")
    parser.add_argument("--seconds", type=float, default=3.0, help=f"of {RATE} commits each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--lock", type=Path, help="hold this file's lock for each round")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        with cleaning_up():
            results = run(given)
    except KeyboardInterrupt:
        sys.exit(130)
    if given.json:
        machine = f"{platform.machine()}, Python {platform.python_version()}, {platform.system()}"
        peers = {each.peer.name: each.as_dict() for each in results}
        print_json({"broker": given.broker, "machine": machine, "peers": peers})
        return
    print_table(
        ["peer", "p50 (ms)", "p95 (ms)", "row (µs)", "hook (µs)", "drain (events/s)", "settings"],
        [each.row() for each in results],
    )
    print()
    print_table(
        ["peer", "crash after commit", "broker empty", "worker killed", "twice", "fan-out", "dead"],
        [[each.peer.shown, *each.peer.guarantees.cells()] for each in results],
    )


if __name__ == "__main__":
    main()
