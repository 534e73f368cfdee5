"""One call of a subscription's handler, and the delivery rows that belong to it."""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from collections.abc import Awaitable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from traceback import walk_tb
from typing import Any
from uuid import UUID

from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INERROR
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction

from cos_events import context, telemetry
from cos_events.envelope import Envelope
from cos_events.error_text import describe, one_line
from cos_events.errors import Unsuccessful
from cos_events.process import PerThread
from cos_events.store import deliveries
from cos_events.store.engine import get_autocommit_engine, get_engine
from cos_events.subscribers import Subscriber
from cos_events.telemetry import names

CANCELLED_WITHIN = 5.0
"""Seconds that a coroutine has to end once its time limit has passed."""

_loop = PerThread(asyncio.Runner)


class LedgerAway(Exception):
    """PostgreSQL failed the ledger, or went down under the handler: no attempt was made."""


class ConnectionLost(LedgerAway):
    """PostgreSQL was lost while the handler ran; the handler may have caused it."""


class HandlersSession(Session):
    """One whose transaction the bus ends: a handler's own commit would commit its delivery, too.

    Once it is closed it refuses to be used. Otherwise what a failed coroutine has left behind in
    the event loop would begin a transaction on it that nobody ends.
    """

    may_commit = False

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, close_resets_only=False)


@event.listens_for(HandlersSession, "before_commit")
def _refuse_commit(session: HandlersSession) -> None:
    if not session.may_commit and not session.in_nested_transaction():
        raise Unsuccessful(
            "the handler committed its session: leave that to the bus, which commits once it "
            "returns; put what may fail inside session.begin_nested()"
        )


def attempt(
    subscriber: Subscriber, envelopes: list[Envelope], retries: int, engine: Engine | None = None
) -> tuple[Collection[UUID], set[UUID]]:
    """Call the handler for those of the envelopes that are due.

    Args:
        subscriber: the subscription and its handler.
        envelopes: what one call is for.
        retries: how many there were before.
        engine: for the handler's session, if it takes one; by default one whose commits wait for
            the disk.

    Returns:
        The ids among them that this call delivered; and those that were never recorded in this
        database.

    Raises:
        LedgerAway: nothing was delivered, through nobody's fault.
        ConnectionLost: the same, and perhaps the handler's fault.
        Exception: whatever the handler raised; then nothing was delivered.
    """
    by_id = {envelope.base_log_id: envelope for envelope in envelopes}
    ids = by_id.keys()
    name, attempts = subscriber.name, retries + 1
    if subscriber.wants_session:
        with HandlersSession(engine or get_engine()) as session, session.begin() as begun:
            with ledger():
                fresh = deliveries.settle(session, name, ids, attempts)
            settled_at = monotonic()
            with _unless_lost(session.connection()):
                call_within(begun, subscriber, _as_corrected(envelopes, fresh))
            rest = ids - fresh.keys()
            with ledger():
                known = deliveries.due(session, name, rest, attempts) if rest else {}
            session.may_commit = True
            _commit(begun)
        _count(name, by_id, fresh, monotonic() - settled_at)
        return fresh.keys(), rest - known.keys()
    due, strangers = due_of(subscriber, envelopes, retries)
    call(subscriber, list(due.values()))
    settle(subscriber, due.values(), retries)
    return due.keys(), strangers


def due_of(
    subscriber: Subscriber, envelopes: Collection[Envelope], retries: int
) -> tuple[dict[UUID, Envelope], set[UUID]]:
    """The events that are due, as they are to be handled; and those never recorded here.

    Raises:
        LedgerAway: nobody can say.
    """
    ids = {envelope.base_log_id for envelope in envelopes}
    with ledger(), get_autocommit_engine().connect() as connection:
        found = deliveries.due(connection, subscriber.name, ids, retries + 1)
    due = {event_id: each for event_id, each in found.items() if each.due}
    chosen = {each.base_log_id: each for each in _as_corrected(envelopes, due)}
    return chosen, ids - found.keys()


def _as_corrected(
    envelopes: Iterable[Envelope], known: Mapping[UUID, deliveries.Settled | deliveries.Due]
) -> list[Envelope]:
    """Those that are known, each as a person corrected it: an earlier copy may come late."""
    found = {each.base_log_id: each for each in envelopes if each.base_log_id in known}
    for event_id in found:
        if (correction := known[event_id].correction) is not None:
            found[event_id] = Envelope.decode(correction)
    return list(found.values())


def settle(subscriber: Subscriber, envelopes: Collection[Envelope], retries: int) -> None:
    """Write that a handler without the session has handled these.

    Raises:
        LedgerAway: that could not be written; they will come again.
    """
    if not envelopes:
        return
    by_id = {envelope.base_log_id: envelope for envelope in envelopes}
    with ledger(), get_autocommit_engine().connect() as connection:
        fresh = deliveries.settle(connection, subscriber.name, by_id, retries + 1)
    _count(subscriber.name, by_id, fresh)


def _count(
    name: str,
    by_id: Mapping[UUID, Envelope],
    fresh: Mapping[UUID, deliveries.Settled],
    since: float = 0.0,
) -> None:
    latencies = defaultdict(list)
    for event_id, each in fresh.items():
        latencies[by_id[event_id].source_module].append(each.age + since)
    for module, seconds in latencies.items():
        telemetry.count(names.DELIVERED, module, name, by=len(seconds))
        telemetry.observe(names.DELIVERY_LATENCY, module, name, seconds=seconds)


def call_within(
    begun: SessionTransaction, subscriber: Subscriber, envelopes: list[Envelope]
) -> None:
    """Call a handler that takes the session, with the one of this transaction.

    Raises:
        Unsuccessful: as `call`; and if the transaction cannot be committed any more.
        Exception: whatever it raised.
    """
    call(subscriber, envelopes, session=begun.session)
    _require_open(begun.session, begun)


def call(subscriber: Subscriber, envelopes: list[Envelope], **session: Session) -> None:
    """Call the handler for these, in whatever form it is.

    What a handler of one event records belongs to that event's request and trace.

    Raises:
        Unsuccessful: it returned False, or raised something that is not an Exception.
        SystemExit: Celery's pool ends this process with a signal: not a failure.
        KeyboardInterrupt: a person ends it.
        Exception: whatever it raised.
    """
    if not envelopes:
        return
    try:
        if subscriber.batch_size > 1:
            result = _finished(subscriber.handle(envelopes, **session))
        else:
            (only,) = envelopes
            with context.request(only.request_id, only.trace_id):
                result = _finished(subscriber.handle(only, **session))
    except (Exception, KeyboardInterrupt):
        raise
    except SystemExit as error:
        if _ends_the_process(error):
            raise
        raise Unsuccessful(f"{subscriber.name} called sys.exit()") from error
    except BaseException as error:
        # Celery would neither acknowledge the message nor end the task.
        raise Unsuccessful(f"{subscriber.name} raised {describe(error)}") from error
    if result is False:
        raise Unsuccessful(f"{subscriber.name} returned False")


def _finished(result: Any) -> Any:
    return _run(result) if inspect.isawaitable(result) else result


def _ends_the_process(error: SystemExit) -> bool:
    """Whether the pool raised this, in its signal handler; otherwise the code that it ran did."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    # Within a pool's process `sys.exit` is billiard's.
    while modules[-1] == "billiard.pool":
        modules.pop()
    return modules[-1].startswith(("billiard.", "celery."))


def _run(result: Awaitable[Any]) -> Any:
    """Await it in this thread's event loop, where what handlers keep between calls lives."""
    loop = _loop.get().get_loop()
    task = loop.create_task(_awaited(result))
    try:
        return loop.run_until_complete(task)
    except BaseException:
        if not task.done():
            # A time limit is raised in the loop, not in the coroutine: that would continue
            # within the next call.
            task.cancel()
            loop.run_until_complete(asyncio.wait([task], timeout=CANCELLED_WITHIN))
        raise


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


@contextmanager
def ledger() -> Iterator[None]:
    """A statement of the ledger's own.

    Raises:
        LedgerAway: it failed.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise LedgerAway(f"{type(error).__name__}: {one_line(error)}") from error


@contextmanager
def _unless_lost(connection: Connection) -> Iterator[None]:
    # The handler's statements run on the ledger's connection: losing it does not count as an
    # attempt.
    try:
        yield
    except DBAPIError as error:
        if connection.invalidated:
            raise ConnectionLost(f"{type(error).__name__}: {one_line(error)}") from error
        raise


def _commit(begun: SessionTransaction) -> None:
    # What a deferred constraint refuses is the handler's failure; a connection that is lost is not.
    try:
        begun.commit()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise LedgerAway(f"{type(error).__name__}: {one_line(error)}") from error
        raise


def _require_open(session: Session, begun: SessionTransaction) -> None:
    if not begun.is_active:
        raise Unsuccessful("the handler ended its session's transaction")
    # PostgreSQL would then answer COMMIT with ROLLBACK, without an error.
    driver: Any = session.connection().connection.dbapi_connection
    status = driver.get_transaction_status()
    if status == TRANSACTION_STATUS_IDLE:
        raise Unsuccessful("the handler ended its session's transaction, bypassing the session")
    if status == TRANSACTION_STATUS_INERROR:
        raise Unsuccessful(
            "the handler carried on after a failed statement: put what may fail inside "
            "session.begin_nested()"
        )
