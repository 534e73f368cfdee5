"""Which of the events recorded on a session have really committed.

SQLAlchemy's `after_commit` also fires when a SAVEPOINT is released, and neither `close()` nor a
deferred constraint that fails at COMMIT fires a rollback event. So what was recorded is kept by
transaction, moved up when a SAVEPOINT is released, and handed over when the outermost transaction
has ended, if it ended with a commit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction, UOWTransaction, scoped_session

from cos_events import telemetry
from cos_events.dispatcher import wake
from cos_events.store import writing
from cos_events.store.engine import wait_when_committing
from cos_events.store.models import OutboxRow
from cos_events.telemetry import names

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

AnySession: TypeAlias = (
    "Session | scoped_session[Any] | AsyncSession | async_scoped_session[AsyncSession]"
)
"""A session that an application records in."""

logger = logging.getLogger(__name__)

_KEY = "cos_events.capture"
_BIND: Any = {"mapper": OutboxRow.__mapper__}
"""How a session is asked for the outbox's database; a routing session may look at the mapper."""


@dataclass(slots=True)
class _Recorded:
    """What one session recorded, by the transaction that still holds it.

    Attributes:
        rows: each with its outbox id and its source module.
        committed: the outermost transaction has committed, and is about to end.
        span: from the first record of the outermost transaction to its end.
    """

    rows: dict[SessionTransaction, list[tuple[int, str]]] = field(default_factory=dict)
    committed: bool = False
    span: telemetry.Span | None = None


def watch(session: AnySession) -> AbstractContextManager[object]:
    """Follow what this session records; harmless if it is already followed.

    Returns:
        Makes the span of the session's transaction the current one, within a `with`.

    Raises:
        TypeError: it is not a session.
    """
    if not hasattr(session, "add"):
        kind = type(session).__name__
        raise TypeError(f"record with a SQLAlchemy Session, not with this {kind}: {session!r}")
    recorded: _Recorded = session.info.setdefault(_KEY, _Recorded())
    if recorded.span is None:
        recorded.span = telemetry.start(names.COMMIT)
    return recorded.span.current()


# On the class, not on each session: three listeners a session cost more than the commit's own hook.
@event.listens_for(Session, "before_flush")
def _before_flush(session: Session, _context: UOWTransaction, _objects: object) -> None:
    if (recorded := session.info.get(_KEY)) is None:
        return
    rows = [each for each in _new_rows(session) if each.companions is not None]
    if not rows:
        return
    try:
        _keep(session, recorded, writing.write(session.connection(bind_arguments=_BIND), rows))
        for row in rows:
            session.expunge(row)
    except BaseException:
        _fail(session)
        raise


@event.listens_for(Session, "after_flush")
def _after_flush(session: Session, _context: UOWTransaction) -> None:
    # What another listener of before_flush recorded after ours was inserted by the unit of work;
    # what was recorded even later still waits for the next flush.
    if (recorded := session.info.get(_KEY)) is None:
        return
    if rows := [(row.id, row.source_module) for row in _new_rows(session) if row.id is not None]:
        _keep(session, recorded, rows)


def _new_rows(session: Session) -> Iterator[OutboxRow]:
    return (row for row in session.new if isinstance(row, OutboxRow))


def _keep(session: Session, recorded: _Recorded, written: list[tuple[int, str]]) -> None:
    if transaction := session.get_nested_transaction() or session.get_transaction():
        recorded.rows.setdefault(transaction, []).extend(written)
    # They are broadcast at once: a crash of PostgreSQL must not take them back. Every commit passes
    # through here; rolling back a SAVEPOINT takes this back, and the rows.
    wait_when_committing(session, session.get_bind(**_BIND))


def _fail(session: Session) -> None:
    """Leave the session as any flush that failed does: nothing works in it until it rolls back.

    SQLAlchemy has no public way; this is what `Session._flush` does with its own errors.
    """
    session._autobegin_t()._begin().rollback(_capture_exception=True)  # noqa: SLF001


@event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    if (recorded := session.info.get(_KEY)) is None:
        return
    released = session.get_nested_transaction()
    if released is None:
        recorded.committed = True
    elif released.parent is not None and (rows := recorded.rows.pop(released, None)):
        recorded.rows.setdefault(released.parent, []).extend(rows)


@event.listens_for(Session, "after_transaction_end")
def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    if (recorded := session.info.get(_KEY)) is None:
        return
    rows = recorded.rows.pop(transaction, None) or []
    if transaction.parent is not None:
        return
    committed, span = recorded.committed, recorded.span
    recorded.rows.clear()
    recorded.committed, recorded.span = False, None
    if not rows and span is None:
        return
    try:
        outcome = _outcome(session, committed)
        if outcome == "committed":
            _hand_over(rows)
        if span is not None:
            span.set({names.OUTCOME: outcome, names.COUNT: len(rows)})
            span.end()
    except Exception:  # the rows are committed: no error may reach the caller now
        logger.exception("outbox rows %s are left to the relay", [row[0] for row in rows])


def _outcome(session: Session, committed: bool) -> str:
    if not committed:
        return "rolled back"
    return "joined" if _inside_another_transaction(session) else "committed"


def _hand_over(rows: list[tuple[int, str]]) -> None:
    if rows:
        wake([row[0] for row in rows], [row[1] for row in rows])


def _inside_another_transaction(session: Session) -> bool:
    # A session joined to its connection's own transaction has committed nothing yet. When that
    # one commits, nobody tells the session: the relay finds the rows.
    bind = session.get_bind(**_BIND)
    return isinstance(bind, Connection) and bind.in_transaction()
