"""What it costs as work grows: each dimension by itself, the others small.

    python -m benchmarks.growth [--only history payload] [--sizes 10000 1000000] [--plot FILE.svg]

history        events that everybody has had: a batch's claim, one event's publication, the relay
subscriptions  that want every event: copies a second of one publisher; deliveries of one worker
payload        bytes of an event's data: from a full outbox to a subscription's handler
publishers     processes that drain one full outbox
commit         events in a transaction of the application, and what the hook costs it

On a private PostgreSQL and Valkey.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.growth import commit, history, payload, publishers, subscriptions
from benchmarks.growth.data import Row
from cos_events.cli.output import print_json, print_table
from cos_events.cli.servers import available
from cos_events.store.engine import get_engine
from cos_events.store.migrations import upgrade


def told(rows: Iterator[Row]) -> Iterator[Row]:
    """The same, each said as soon as it is known."""
    for row in rows:
        print(row, file=sys.stderr, flush=True)
        yield row


def main() -> None:
    """Parse the command line and measure."""
    dimensions: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
        "history": lambda given: history.measure(given.sizes),
        "subscriptions": lambda _: subscriptions.measure([1, 10, 30, 100], 8_000),
        "payload": lambda _: payload.measure([200, 2_000, 20_000, 200_000], 40_000_000),
        "publishers": lambda _: publishers.measure([1, 2, 4], 20_000),
        "commit": lambda _: commit.measure([1, 10, 100, 1_000], 3),
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=dimensions, default=list(dimensions))
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with available(None, None) as which:
        print(which, file=sys.stderr)
        upgrade(get_engine())
        found = {name: list(told(dimensions[name](given))) for name in given.only}
    if given.plot:
        # Slow to load, and for pictures alone.
        from benchmarks.growth.plot import plot  # noqa: PLC0415

        plot(found, given.plot)
    if given.json:
        print_json(found)
        return
    for name, rows in found.items():
        print(f"\n{name}")
        print_table(
            list(rows[0]),
            [
                [f"{value:,.4g}" if value < 100 else f"{value:,.0f}" for value in row.values()]
                for row in rows
            ],
        )


if __name__ == "__main__":
    main()
