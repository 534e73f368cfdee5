"""No-op tasks a second, each acknowledged, from a full queue: Kombu's transport, and ours.

    python benchmarks/consumption.py [--tasks 10000] [--rounds 3] [--prefetch 64] [--json]

On a private Valkey. For each pool both transports have a worker of their own in a database of their
own; they take turns, the same messages each time. Shows the medians of the rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from celery import Celery, signals
from redis import Redis

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])

import cos_events.redis_transport  # noqa: F401 - makes the scheme known
from cos_events.cli.output import print_json, print_table
from cos_events.cli.processes import Spec, running
from cos_events.embedded import EmbeddedValkey, own_folder
from cos_events.errors import CosEventsError

QUEUE, FULL = "celery", "full"
POOLS = {"solo": 1, "prefork": 2, "threads": 2}
SCHEMES = {"stock": "redis", "ours": "redis-batch"}
PATIENCE = 120.0
BROKER, PREFETCH = "CONSUMPTION_BROKER", "CONSUMPTION_PREFETCH"

app = Celery("consumption", broker=os.environ.get(BROKER), set_as_current=False)
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=int(os.environ.get(PREFETCH, "4")),
)


@app.task(name="consumption.nothing")
def nothing() -> None:
    """What is left is the transport's cost, and the worker's."""


@signals.worker_ready.connect
def _say(**_: object) -> None:
    # As Celery does, but at any log level: what it logs of each task costs time.
    print("worker ready.", flush=True)


def fill(client: Redis, tasks: int) -> None:
    """Have so many tasks at hand, to be copied to the queue."""
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        batching: Any = producer  # the stubs lack it
        with batching.batch(1_000):
            for _ in range(tasks):
                nothing.apply_async(producer=producer, retry=False)
        client.rename(QUEUE, FULL)


def rate(client: Redis, tasks: int) -> float:
    """Tasks a second, from the moment they are on the queue until all are acknowledged."""
    begun = time.monotonic()
    client.copy(FULL, QUEUE)
    while True:
        with client.pipeline() as pipe:
            pipe.llen(QUEUE)
            pipe.hlen("unacked")
            waiting, unacknowledged = pipe.execute()
        if not waiting + unacknowledged:
            return tasks / (time.monotonic() - begun)
        if time.monotonic() > begun + PATIENCE:
            raise CosEventsError(f"{waiting + unacknowledged:,} of {tasks:,} tasks are left")
        time.sleep(0.01)


def measure(
    valkey: EmbeddedValkey, folder: Path, pool: str, given: argparse.Namespace
) -> dict[str, list[float]]:
    """Both transports by turns in workers of one pool."""
    clients: dict[str, Redis] = {}
    found: dict[str, list[float]] = {name: [] for name in SCHEMES}
    with ExitStack() as endings:
        for number, (name, scheme) in enumerate(SCHEMES.items()):
            url = f"{valkey.url.rpartition('/')[0]}/{number}"
            clients[name] = endings.enter_context(Redis.from_url(url))
            clients[name].flushdb()
            os.environ[BROKER] = url.replace("redis://", f"{scheme}://")
            app.conf.update(broker_url=os.environ[BROKER])
            fill(clients[name], given.tasks)
            options = ["-P", pool, "-c", str(POOLS[pool]), "-l", "WARNING", "-n", f"{name}@%h"]
            command = ["celery", "-A", "benchmarks.consumption", "worker", *options]
            quiet = ["--without-mingle", "--without-gossip"]
            endings.enter_context(running(folder, [Spec(f"{pool}-{name}", [*command, *quiet])]))
            rate(clients[name], given.tasks)
        for _ in range(given.rounds):
            for name, client in clients.items():
                found[name].append(rate(client, given.tasks))
                print(f"{pool} {name} {found[name][-1]:,.0f}/s", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prefetch", type=int, default=64, help="Celery's multiplier, for both")
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=list(POOLS))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    os.environ[PREFETCH] = str(given.prefetch)
    with own_folder() as home, ExitStack() as endings:
        valkey = EmbeddedValkey(home.path / "valkey", "measured")
        endings.callback(valkey.stop)
        valkey.start()
        found = {pool: measure(valkey, home.path, pool, given) for pool in given.pools}
    table = [
        {
            "pool": f"{pool} -c {POOLS[pool]}",
            "stock": median(rates["stock"]),
            "ours": median(rates["ours"]),
            "ratio": median(b / a for a, b in zip(rates["stock"], rates["ours"], strict=True)),
        }
        for pool, rates in found.items()
    ]
    if given.json:
        print_json(
            {"tasks": given.tasks, "prefetch": given.prefetch, "pools": table, "rates": found}
        )
    else:
        print_table(
            ["pool", "stock /s", "ours /s", "ratio"],
            [
                [
                    each["pool"],
                    f"{each['stock']:,.0f}",
                    f"{each['ours']:,.0f}",
                    f"{each['ratio']:.2f}",
                ]
                for each in table
            ],
        )


if __name__ == "__main__":
    main()
