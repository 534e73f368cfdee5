"""What it costs as work grows: each dimension by itself, the others small.

    python benchmarks/growth.py [--only history payload] [--sizes 10000 1000000] [--plot FILE.svg]

history        events that everybody has had: a batch's claim, one event's publication, the relay
subscriptions  that want every event: copies a second of one publisher; deliveries of one worker
payload        bytes of an event's data: from a full outbox to a subscription's handler
publishers     processes that drain one full outbox
commit         events in a transaction of the application, and what the hook costs it

On a private PostgreSQL and Valkey.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from math import ceil, floor, log10
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

from redis import Redis
from sqlalchemy import text

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])

from benchmarks.app import SUBSCRIPTIONS, names
from cos_events.broadcast import BrokerWire, make_broadcaster, make_wire
from cos_events.cli.bench.application import Application
from cos_events.cli.output import print_json, print_table
from cos_events.cli.processes import workers
from cos_events.cli.servers import available
from cos_events.errors import CosEventsError
from cos_events.feeder import Feeder
from cos_events.publisher import BATCH_SIZE, Publisher, publish_once
from cos_events.relay import Redelivery
from cos_events.retention import Retention
from cos_events.settings import get_settings
from cos_events.store import deliveries, outbox, subscriptions
from cos_events.store.engine import get_autocommit_engine, get_engine, get_relaxed_engine
from cos_events.store.migrations import upgrade
from cos_events.subscription import Subscription

Row = dict[str, float]
PATIENCE = 180.0
WEEK = 7 * 86_400.0
CHUNK = 100_000
PUBLISHED = 4_000

# Hex digits: PostgreSQL and the wire cannot make less of them, as they could of one letter.
ENVELOPES = """
    SELECT id, json_build_object(
        'base_log_id', id, 'source_module', 'cc', 'timestamp', '2026-01-01T00:00:00.000000Z',
        'trace_id', '', 'request_id', '', 'event_type', 'event_log',
        'data', json_build_object('n', n, 'text', left(made.text, :size)))::text AS envelope
    FROM (
        SELECT gen_random_uuid() AS id, n, (
            SELECT string_agg(md5(n::text || '.' || part::text), '')
            FROM generate_series(0, :size / 32) AS part
        ) AS text
        FROM generate_series(1, :count) AS n
    ) AS made
"""
RECORD = text(f"""
    INSERT INTO cos_events.outbox (event_id, source_module, event_type, envelope)
    SELECT id, 'cc', 'event_log', envelope FROM ({ENVELOPES}) AS made
""")  # noqa: S608 - ours
HISTORY = text(f"""
    WITH past AS (
        INSERT INTO cos_events.outbox
            (event_id, source_module, event_type, envelope, recorded_at, published_at)
        SELECT id, 'cc', 'event_log', envelope, began, began
        FROM ({ENVELOPES}) AS made, (SELECT clock_timestamp() - interval '1 hour' AS began)
        RETURNING id, event_id)
    INSERT INTO cos_events.delivery (subscription, event_id, outbox_id, state, attempts)
    SELECT 'growth_0', event_id, id, 'delivered', 1 FROM past
""")  # noqa: S608 - ours
NEWEST = "SELECT event_id FROM cos_events.outbox ORDER BY id DESC LIMIT 100"
FORGET_NEW = """
    DELETE FROM cos_events.outbox WHERE id > (
        SELECT settled_through FROM cos_events.subscription);
    SELECT 1
"""
FORGET_ONE = """
    DELETE FROM cos_events.delivery WHERE event_id = (
        SELECT event_id FROM cos_events.outbox ORDER BY id LIMIT 1);
    UPDATE cos_events.subscription SET settled_through = 0;
    SELECT 1
"""


def record(count: int, size: int = 200) -> None:
    """So many events in the outbox, in one transaction."""
    with get_engine().begin() as connection:
        connection.execute(RECORD, {"count": count, "size": size})


def scalar(statement: str) -> Any:
    """What one statement says, in a transaction of its own."""
    with get_engine().begin() as connection:
        return connection.scalar(text(statement))


def begin(*wanted: str) -> None:
    """Nothing is left of what was before, and these subscriptions are known."""
    with get_engine().begin() as connection:
        connection.execute(
            text(
                "TRUNCATE cos_events.outbox, cos_events.delivery, cos_events.subscription "
                "RESTART IDENTITY"
            )
        )
        subscriptions.register(connection, [Subscription(name) for name in wanted])
    with Redis.from_url(get_settings().broker_url) as client:
        client.flushdb()


def milliseconds(act: Callable[[], object], rounds: int) -> list[float]:
    """How long it takes, each time."""
    spent = []
    for _ in range(rounds):
        begun = time.perf_counter()
        act()
        spent.append((time.perf_counter() - begun) * 1000)
    return spent


def told(rows: Iterator[Row]) -> Iterator[Row]:
    """The same, each said as soon as it is known."""
    for row in rows:
        print(row, file=sys.stderr, flush=True)
        yield row


def history(sizes: Sequence[int]) -> Iterator[Row]:
    """Events that the one subscription has had long ago."""
    publisher = Publisher(get_relaxed_engine(), make_broadcaster())
    for size in sizes:
        begin("growth_0")
        for made in range(0, size, CHUNK):
            with get_engine().begin() as connection:
                connection.execute(HISTORY, {"count": min(CHUNK, size - made), "size": 200})
        scalar("ANALYZE cos_events.outbox, cos_events.delivery; SELECT 1")
        with closing(make_wire()) as wire:
            sweep = sweeping(wire)
            # The watermark goes over what is new, once.
            first: list[float] = []
            while scalar("SELECT settled_through FROM cos_events.subscription") < size:
                first += milliseconds(sweep, 1)
            sweeps = milliseconds(sweep, 60)
            retained = milliseconds(lambda: Retention(get_engine(), WEEK).sweep(), 3)
            record(BATCH_SIZE)
            claims = milliseconds(claim, 20)
            with get_engine().connect() as connection:
                waiting = iter(outbox.claim(connection, BATCH_SIZE))
                fresh = connection.scalars(text(NEWEST)).all()
            ledger = milliseconds(lambda ids=fresh: look_up(ids), 50)
            publish = milliseconds(lambda ids=waiting: publisher.publish([next(ids).id]), 100)
            scalar(FORGET_NEW)
            scalar(FORGET_ONE)
            stuck = milliseconds(sweeping(wire), 5)
        yield {
            "events": size,
            "claim of 500, ms": median(claims),
            "worst claim": max(claims),
            "ledger of 100, ms": median(ledger),
            "worst ledger": max(ledger),
            "publish one, ms": median(publish),
            "worst publish": max(publish),
            "idle sweep, ms": median(sweeps),
            "worst sweep": max(sweeps),
            "sweep over what is new": median(first),
            "the first not had": median(stuck),
            "retention round": median(retained),
        }


def sweeping(wire: BrokerWire) -> Callable[[], object]:
    """What a relay does each second, but for the retention; nothing is ever overdue."""
    redelivery = Redelivery(get_engine(), wire, after=WEEK)
    feeder = Feeder(get_engine(), wire, get_settings().queue_depth, again=WEEK)
    return lambda: (publish_once(), feeder.sweep(), redelivery.sweep())


def claim() -> None:
    """Lock a full batch, and let go of it."""
    with get_relaxed_engine().connect() as connection:
        assert len(outbox.claim(connection, BATCH_SIZE)) == BATCH_SIZE


def look_up(ids: Sequence[UUID]) -> None:
    """What a worker asks of the ledger for a batch."""
    with get_autocommit_engine().connect() as connection:
        assert all(deliveries.due(connection, "growth_0", ids, 1).values())


def fan_out(counts: Sequence[int], copies: int) -> Iterator[Row]:
    """Subscriptions that all want every event; about so many copies are handled for each count."""
    for count in counts:
        wanted, events = names(count), min(8_000, copies // count)
        os.environ[SUBSCRIPTIONS] = str(count)
        begin(*wanted)
        publisher = Publisher(get_relaxed_engine(), make_broadcaster())
        # What it does once for each queue is not what a copy costs.
        record(1)
        publisher.publish()
        record(PUBLISHED)
        begun = time.perf_counter()
        while publisher.publish():
            pass
        published = time.perf_counter() - begun
        begin(*wanted)
        with processes(publishers=1, subscriptions=wanted) as frozen:
            with frozen():
                record(events)
            spent = await_delivered(events * count)
        yield {
            "subscriptions": count,
            "events": events,
            "published, events/s": PUBLISHED / published,
            "published, copies/s": PUBLISHED * count / published,
            "handled, deliveries/s": events * count / spent,
        }


def payload(sizes: Sequence[int], bytes_in_all: int) -> Iterator[Row]:
    """Events of so many bytes."""
    wanted = names(1)
    os.environ[SUBSCRIPTIONS] = "1"
    begin(*wanted)
    with processes(publishers=1, subscriptions=wanted) as frozen:
        for size in sizes:
            events = min(8_000, bytes_in_all // size)
            begin(*wanted)
            with frozen():
                record(events, size)
            spent = await_delivered(events)
            yield {
                "bytes": size,
                "events": events,
                "handled, events/s": events / spent,
                "MB/s": events * size / spent / 1e6,
            }


def drain(counts: Sequence[int], events: int) -> Iterator[Row]:
    """Publisher processes, with one subscription whose worker is away."""
    os.environ["COS_EVENTS_QUEUE_DEPTH"] = "1000000"
    for count in counts:
        begin(*names(1))
        with processes(publishers=count, subscriptions=[]) as frozen:
            with frozen():
                record(events)
            await_all(lambda: events - scalar("SELECT count(published_at) FROM cos_events.outbox"))
        # A relay looks once a second: what it waits for is not the drain.
        spent = published_for("max(published_at)")
        yield {"publishers": count, "events/s": events / spent}
    del os.environ["COS_EVENTS_QUEUE_DEPTH"]


def commit(sizes: Sequence[int], seconds: float) -> Iterator[Row]:
    """Events in one transaction of an application; nobody publishes meanwhile."""
    begin(*names(1))
    with closing(Application(get_engine(), 1_000_000)) as application:
        application.commit("cc", range(10))
        for size in sizes:
            costs = application.hook_costs["bus"]
            costs.clear()
            begun = time.monotonic()
            while time.monotonic() < begun + seconds or len(costs) < 5:
                application.commit("cc", range(size))
            rate = len(costs) * size / (time.monotonic() - begun)
            yield {
                "events a commit": size,
                "events/s": rate,
                "hook, µs": 1e6 * median(costs),
                "hook for each event, µs": 1e6 * median(costs) / size,
            }


@contextmanager
def processes(
    publishers: int, subscriptions: Sequence[str]
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Publishers and one worker for all subscriptions; yields what stops publishers a while."""
    quiet = ("-A", "benchmarks.app", "-l", "WARNING", "--without-mingle", "--without-gossip")
    specs = [
        (f"publisher{number}", ["publisher", *quiet, "-n", f"publisher{number}@%h"])
        for number in range(publishers)
    ]
    if subscriptions:
        specs.append(("handlers", ["subscriber", *subscriptions, *quiet, "-n", "handlers@%h"]))
    with (
        tempfile.TemporaryDirectory() as folder,
        workers(Path(folder), specs) as started,
    ):
        pids = [each.process.pid for each in started[:publishers]]

        @contextmanager
        def frozen() -> Iterator[None]:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                yield
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)

        yield frozen


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


def plot(found: dict[str, list[Row]], target: Path) -> None:
    """One picture for each dimension, its first column to the right."""
    # Slow to load, and for pictures alone.
    from matplotlib import rcParams  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    rcParams["svg.fonttype"] = "none"
    down = ceil(len(found) / 3)
    figure = Figure(figsize=(12, 3.6 * down), layout="constrained")
    for number, (name, rows) in enumerate(found.items(), 1):
        axes = figure.add_subplot(down, 3, number)
        across, *others = (each for each in rows[0] if not each.startswith("worst"))
        drawn = [each for each in others if each != "events"]
        for each in drawn:
            axes.plot([row[across] for row in rows], [row[each] for row in rows], "o-", label=each)
        values = [row[each] for row in rows for each in drawn]
        axes.set(xscale="log", yscale="log", title=name, xlabel=across)
        axes.set_ylim(10 ** floor(log10(min(values))), 10 ** ceil(log10(max(values))))
        axes.minorticks_off()
        axes.set_xticks([row[across] for row in rows], [f"{row[across]:,.0f}" for row in rows])
        axes.legend(fontsize="x-small", frameon=False)
    figure.savefig(target)


def shown(value: float) -> str:
    """With about three digits."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def main() -> None:
    """Parse the command line and measure."""
    dimensions: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
        "history": lambda given: history(given.sizes),
        "subscriptions": lambda _: fan_out([1, 10, 30, 100], 8_000),
        "payload": lambda _: payload([200, 2_000, 20_000, 200_000], 40_000_000),
        "publishers": lambda _: drain([1, 2, 4], 20_000),
        "commit": lambda _: commit([1, 10, 100, 1_000], 3),
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
