"""Which of the events recorded on a session have really committed.

SQLAlchemy's `after_commit` fires also when a SAVEPOINT is released, and neither `close()` nor a
deferred constraint that fails at COMMIT fires a rollback event. So what a transaction recorded is
kept by transaction, moved up when a SAVEPOINT is released, and handed over when the outermost one
has ended, if that was by a commit.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction, UOWTransaction

from cos_events.dispatcher import wake
from cos_events.store.models import OutboxRow

logger = logging.getLogger(__name__)

_KEY = "cos_events.capture"


@dataclass(slots=True)
class _Recorded:
    """The outbox ids that one session recorded, by the transaction that still holds them."""

    ids: dict[SessionTransaction, list[int]] = field(default_factory=dict)
    committed: bool = False


def watch(session: Session) -> None:
    """Follow what this session records; harmless if it is followed already."""
    session.info.setdefault(_KEY, _Recorded())


# On the class, not on each session: three listeners a session cost more than the commit's own hook.
@event.listens_for(Session, "after_flush")
def _after_flush(session: Session, _context: UOWTransaction) -> None:
    if (recorded := session.info.get(_KEY)) is None:
        return
    ids = [row.id for row in session.new if isinstance(row, OutboxRow)]
    transaction = session.get_nested_transaction() or session.get_transaction()
    if ids and transaction is not None:
        recorded.ids.setdefault(transaction, []).extend(ids)


@event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    if (recorded := session.info.get(_KEY)) is None:
        return
    released = session.get_nested_transaction()
    if released is None:
        recorded.committed = True
    elif released.parent is not None and (ids := recorded.ids.pop(released, None)):
        recorded.ids.setdefault(released.parent, []).extend(ids)


@event.listens_for(Session, "after_transaction_end")
def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    if (recorded := session.info.get(_KEY)) is None:
        return
    ids = recorded.ids.pop(transaction, None)
    if transaction.parent is not None:
        return
    committed = recorded.committed
    recorded.ids.clear()
    recorded.committed = False
    if ids and committed:
        _hand_over(session, ids)


def _hand_over(session: Session, ids: list[int]) -> None:
    try:
        if not _inside_another_transaction(session):
            wake(ids)
    except Exception:  # the rows are committed: nothing may reach the caller now
        logger.exception("outbox rows %s are left to the relay", ids)


def _inside_another_transaction(session: Session) -> bool:
    # A session joined to its connection's own transaction has committed nothing yet. When that
    # does, nobody tells the session: the relay finds the rows.
    bind = session.get_bind(OutboxRow)
    return isinstance(bind, Connection) and bind.in_transaction()
