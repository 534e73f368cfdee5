"""An application that commits, and enqueues with one peer in its committing thread.

    python -m benchmarks.peers.application NAME

Each line of its standard input is an order, `first count rate per_commit`: commit these events, so
many a second (0: as fast as it goes), so many a transaction. It answers each with a line: what the
peer's share of an event cost the committing thread, in the transaction and after the commit, the
medians in microseconds.

A peer's module may have `prepare()`, called once before anything else; `in_transaction(session,
event)`; and `after_commit(event)`. If one of them is a coroutine function, the application is an
asynchronous one: with an `AsyncSession`, and `after_commit` awaited after the commit. Else it is
called by the session's hook of that name.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from statistics import median
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.orm import Session

from benchmarks.peers import work


class Costs:
    """What the peer's share of an event cost, transaction by transaction, in seconds."""

    def __init__(self) -> None:
        self._rows: list[float] = []
        self._hooks: list[float] = []

    def add(self, events: int, row: float, hook: float) -> None:
        """Of one more transaction."""
        self._rows.append(row / events)
        self._hooks.append(hook / events)

    def medians(self) -> str:
        """In microseconds: in the transaction, and after it."""
        return f"{1e6 * median(self._rows)} {1e6 * median(self._hooks)}"


class Application:
    """Commits with a session, as most applications with SQLAlchemy do.

    Parameters:
        peer: its module.
    """

    def __init__(self, peer: Any) -> None:
        self.costs = Costs()
        self._in_transaction = getattr(peer, "in_transaction", None)
        self._after_commit = getattr(peer, "after_commit", None)
        self._engine = create_engine(work.DATABASE_URL)
        self._numbers = range(0)
        self._hook = self._begun = 0.0
        # Around every other listener: the cost is what they take.
        event.listen(Session, "after_commit", self._committed, insert=True)
        event.listen(Session, "after_commit", self._enqueue)
        event.listen(Session, "after_transaction_end", self._begin, insert=True)
        event.listen(Session, "after_transaction_end", self._end)

    async def commit(self, numbers: range) -> None:
        """Commit these events in one transaction."""
        self._numbers, self._hook, row = numbers, 0.0, 0.0
        with Session(self._engine) as session, session.begin():
            session.add_all(map(work.order_of, numbers))
            session.flush()
            if self._in_transaction:
                begun = time.perf_counter()
                for number in numbers:
                    self._in_transaction(session, work.event_of(number))
                session.flush()
                row = time.perf_counter() - begun
        self.costs.add(len(numbers), row, self._hook)

    def _committed(self, _session: Session) -> None:
        for number in self._numbers:
            work.marks(work.COMMITTED).put(number)
        self._begun = time.perf_counter()

    def _enqueue(self, _session: Session) -> None:
        if self._after_commit:
            for number in self._numbers:
                self._after_commit(work.event_of(number))
        self._hook += time.perf_counter() - self._begun

    def _begin(self, _session: Session, _transaction: Any) -> None:
        self._begun = time.perf_counter()

    def _end(self, _session: Session, transaction: Any) -> None:
        if transaction.parent is None:
            self._hook += time.perf_counter() - self._begun


class AsyncApplication:
    """The same with an `AsyncSession`.

    Parameters:
        peer: its module.
    """

    def __init__(self, peer: Any) -> None:
        # It needs greenlet, which the environment of cos-events does without.
        from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine  # noqa: PLC0415

        self.costs = Costs()
        self._in_transaction = getattr(peer, "in_transaction", None)
        self._after_commit = getattr(peer, "after_commit", None)
        self._session = async_sessionmaker(create_async_engine(work.ASYNC_DATABASE_URL))

    async def commit(self, numbers: range) -> None:
        """Commit these events in one transaction."""
        row = hook = 0.0
        async with self._session.begin() as session:
            session.add_all(map(work.order_of, numbers))
            await session.flush()
            if self._in_transaction:
                begun = time.perf_counter()
                for number in numbers:
                    await self._in_transaction(session, work.event_of(number))
                row = time.perf_counter() - begun
        for number in numbers:
            work.marks(work.COMMITTED).put(number)
        if self._after_commit:
            begun = time.perf_counter()
            for number in numbers:
                await self._after_commit(work.event_of(number))
            hook = time.perf_counter() - begun
        self.costs.add(len(numbers), row, hook)


async def paced(
    numbers: range, rate: float, per_commit: int, commit: Callable[[range], Awaitable[None]]
) -> None:
    """Commit so many events a second; late ones follow at once."""
    begun = time.monotonic()
    for done in range(0, len(numbers), per_commit):
        if rate and (wait := begun + done / rate - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        await commit(numbers[done : done + per_commit])


async def serve(name: str) -> None:
    """Obey until the standard input ends."""
    # What a library prints must not be taken for an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    peer = import_module(f"benchmarks.peers.{name}_peer")
    hooks = [getattr(peer, each, None) for each in ("prepare", "in_transaction", "after_commit")]
    if hooks[0] and inspect.isawaitable(prepared := hooks[0]()):
        await prepared
    if any(map(inspect.iscoroutinefunction, hooks)):
        application: Application | AsyncApplication = AsyncApplication(peer)
    else:
        application = Application(peer)
    while line := await asyncio.to_thread(sys.stdin.readline):
        first, count, rate, per_commit = map(int, line.split())
        application.costs = Costs()
        await paced(range(first, first + count), rate, per_commit, application.commit)
        print(application.costs.medians(), file=answers, flush=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
