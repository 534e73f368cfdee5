"""The demo, chapter by chapter."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path
from uuid import UUID

from rich.console import Console
from rich.progress import Progress
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from cos_events import broker
from cos_events.cli.demo.listeners import Heard, listening
from cos_events.cli.demo.trouble import trouble
from cos_events.cli.processes import check_alive, running, worker
from cos_events.cli.verify import print_accounts, settled_accounts
from cos_events.dead_letters.finding import find
from cos_events.dead_letters.replaying import replay
from cos_events.errors import CosEventsError
from cos_events.l1.lines import log_line, record_lines
from cos_events.settings import mask
from cos_events.store.dead_letters import Filter
from cos_events.store.engine import explained, get_engine
from cos_events.store.migrations import upgrade
from cos_events.store.models import DeliveryRow, OutboxRow
from cos_events.topology import PUBLISH_QUEUE, dead_letter_queue_name

SUBSCRIPTIONS = ("activity", "graph_staging", "mailer", "archive")

WORKERS = [
    worker("publisher", "publisher"),
    worker("cos-subscribers", "subscriber", "activity", "graph_staging", "-c", "1"),
    worker(
        "other-team",
        *("subscriber", "mailer", "archive", "-A", "cos_events.cli.demo.app", "-P", "threads"),
    ),
]

TIMEOUT = 60.0
"""Seconds that each chapter may take."""


class Story:
    """Tells on the terminal how events travel; see `cos-events demo`.

    Parameters:
        folder: for the workers' logs and the demo's troubles.
        which: one sentence on the servers in use.
        source: JSON lines to record, or None to make some up.
        events: how many.
    """

    def __init__(self, folder: Path, which: str, source: Path | None, events: int) -> None:
        self._folder = folder
        self._which = which
        self._lines = islice(_lines(source), events)
        self._committed = 0
        self._console = Console(highlight=False)

    def tell(self) -> int:
        """The whole story; the status with which the demo ends."""
        self._say("servers", self._which)
        self._say("broker", mask(broker.broker_url()))
        with explained():
            upgrade(get_engine())
        with _own_queues(), running(self._folder, WORKERS) as started:
            self._say("workers", f"{', '.join(each.name for each in started)} are ready")
            with listening() as (channel, exchange):
                self._three_events(channel, exchange)
                self._retry()
                self._dead_letter()
                self._the_rest()
                check_alive(started)
                return self._books(channel, exchange)

    def _three_events(self, channel: Heard, exchange: Heard) -> None:
        with Session(get_engine()) as session:
            log_line(session, _made_up(0))
            session.rollback()
        self._say("rollback", "one event recorded and rolled back: nobody sees it")
        with Session(get_engine()) as session:
            ids = [log_line(session, line) for line in islice(self._lines, 3)]
            trouble("mail_server_restarts").write_text(str(ids[1]))
            trouble("archive_is_broken").write_text(str(ids[2]))
            session.commit()
        committed_at = time.time()
        self._committed = len(ids)
        self._say("commit", f"{len(ids)} events in one transaction, such as {ids[0]}")
        first, self._flaky, self._rejected = ids
        for name, heard in (("channel", channel), ("exchange", exchange)):
            self._until(partial(heard.has, first), f"the {name} to carry the event")
            self._say(name, f"heard after {1000 * (heard.at[str(first)] - committed_at):.1f} ms")
        for name in SUBSCRIPTIONS:
            self._until_state(name, first, "delivered")
            after = 1000 * (self._state(name, first)[2] - committed_at)
            self._say(name, f"delivered after {after:.1f} ms")

    def _retry(self) -> None:
        self._until_state("mailer", self._flaky, "delivered")
        attempts = self._state("mailer", self._flaky)[1]
        self._say(
            "retry",
            f"mailer failed once (the mail server restarts), delivered at attempt {attempts}",
        )

    def _dead_letter(self) -> None:
        self._until_state("archive", self._rejected, "dead")
        (letter,) = find(Filter("archive"))
        self._say("dead letter", f"archive: {letter.error}")
        trouble("archive_is_broken").unlink()
        replayed = replay(Filter("archive"))
        self._until_state("archive", self._rejected, "delivered")
        self._say("replay", f"archive is fixed; {len(replayed)} replayed and delivered")

    def _the_rest(self) -> None:
        started = time.monotonic()
        refused = self._folder / "refused.jsonl"
        summary = record_lines(get_engine(), self._lines, batch=10, keep=refused)
        seconds = time.monotonic() - started
        self._committed += summary.recorded
        if summary.refused:
            self._say("refused", f"{summary.refused:,} lines are not L1 records")
        if summary.recorded:
            rate = summary.recorded / seconds
            self._say("commit", f"{summary.recorded:,} more, ten per transaction: {rate:,.0f}/s")
        with Progress(console=self._console, transient=True) as progress:
            bar = progress.add_task("delivering", total=len(SUBSCRIPTIONS) * self._committed)

            def all_delivered() -> bool:
                done = self._delivered()
                progress.update(bar, completed=done)
                return done == len(SUBSCRIPTIONS) * self._committed

            self._until(all_delivered, "everything to be delivered", max(TIMEOUT, seconds * 10))

    def _books(self, channel: Heard, exchange: Heard) -> int:
        self._until(lambda: channel.copies >= self._committed, "the channel")
        self._until(lambda: exchange.copies >= self._committed, "the exchange")
        with get_engine().connect() as connection:
            counted = connection.scalar(text("SELECT sum(events)::bigint FROM cos_l2.activity"))
        self._say("channel", f"{channel.copies:,} envelopes, {len(channel.at):,} different")
        self._say("exchange", f"{exchange.copies:,} envelopes, {len(exchange.at):,} different")
        self._say("activity", f"counted {counted:,} events in its table")
        self._console.print()
        accounts = settled_accounts(grace=0.0, wait=TIMEOUT)
        print_accounts(accounts)
        right = all(each.delivered == each.committed == self._committed for each in accounts)
        return 0 if right and counted == self._committed else 1

    def _state(self, subscription: str, event_id: UUID) -> tuple[str | None, int, float]:
        with get_engine().connect() as connection:
            row = connection.execute(
                select(
                    DeliveryRow.state,
                    DeliveryRow.attempts,
                    func.extract("epoch", DeliveryRow.updated_at),
                ).where(DeliveryRow.subscription == subscription, DeliveryRow.event_id == event_id)
            ).one_or_none()
        return (row[0], row[1], float(row[2])) if row else (None, 0, 0.0)

    def _until_state(self, subscription: str, event_id: UUID, state: str) -> None:
        self._until(
            lambda: self._state(subscription, event_id)[0] == state,
            f"{subscription} to have event {event_id} {state}",
        )

    def _delivered(self) -> int:
        with get_engine().connect() as connection:
            return (
                connection.scalar(
                    select(func.count())
                    .select_from(DeliveryRow)
                    .join(OutboxRow, OutboxRow.event_id == DeliveryRow.event_id)
                    .where(DeliveryRow.state == "delivered")
                )
                or 0
            )

    def _say(self, what: str, sentence: str) -> None:
        self._console.print(f"[bold cyan]{what:<14}[/]{sentence}", soft_wrap=True)

    @staticmethod
    def _until(reached: Callable[[], bool], what: str, timeout: float = TIMEOUT) -> None:
        deadline = time.monotonic() + timeout
        while not reached():
            if time.monotonic() > deadline:
                raise CosEventsError(f"the demo waited {timeout:.0f} s for {what} in vain")
            time.sleep(0.01)


def require_enough(source: Path) -> None:
    """Raise `CosEventsError` if the input has too few lines to tell the story."""
    with source.open("rb") as file:
        found = len(list(islice(file, 3)))
    if found < 3:
        raise CosEventsError(f"the demo needs 3 records, its input has {found}")


def _lines(source: Path | None) -> Iterator[bytes]:
    if source is None:
        yield from map(_made_up, count())
    else:
        with source.open("rb") as file:
            yield from file


def _made_up(number: int) -> bytes:
    record = (
        {
            "event_type": "prompt_trace",
            "data": {
                "prompt": f"What is {number} times seven?",
                "response": f"{number * 7}.",
                "model": "abacus-1",
                "tokens_in": 7,
                "tokens_out": 2,
                "latency_ms": 120.5,
            },
        }
        if number % 4 == 0
        else {
            "event_type": "event_log",
            "data": {"level": "INFO", "component": "demo", "message": f"event {number}"},
        }
    )
    return json.dumps(record | {"request_id": f"request-{number}"}).encode()


@contextmanager
def _own_queues() -> Iterator[None]:
    """Refuse a broker that carries a bus already; leave no queue behind on any other."""
    names = [
        PUBLISH_QUEUE,
        *SUBSCRIPTIONS,
        *(dead_letter_queue_name(name) for name in SUBSCRIPTIONS),
    ]
    depths = broker.queue_depths(names)
    if taken := [name for name, depth in depths.items() if depth or broker.on_rabbitmq()]:
        raise CosEventsError(
            f"the broker at {mask(broker.broker_url())} carries a bus already "
            f"(queue {taken[0]!r}): give the demo another virtual host or Redis database, "
            "or delete its queues"
        )
    try:
        yield
    finally:
        broker.delete_queues(names)
