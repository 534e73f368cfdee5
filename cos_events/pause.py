"""What a worker process knows about pauses: who runs is looked up at most once a second."""

from __future__ import annotations

import logging
import time
from math import inf

from sqlalchemy.exc import SQLAlchemyError

from cos_events.process import PerProcess
from cos_events.store import pauses
from cos_events.store.engine import get_engine
from cos_events.store.pauses import PauseState

logger = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds for which "not paused" is cached. A handler that is called once too often meanwhile meets
the same outage, and its event is held like the others. A pause is not cached: it may end at any
moment, and the event that is then to probe would be held."""


_seen_running: PerProcess[dict[str, float]] = PerProcess(dict)
"""When each subscription was last found running, by the monotonic clock."""


def state(name: str) -> PauseState:
    """Whether this subscription's handler may be called now."""
    if time.monotonic() - _seen_running.get().get(name, -inf) < LOOK_EVERY:
        return "running"
    try:
        with get_engine().connect() as connection:
            found = pauses.state(connection, name)
    except SQLAlchemyError:
        # The attempt itself will fail on the database, and say so.
        return "running"
    _note(name, found)
    return found


def pause(name: str, because: str) -> None:
    """The subscription's own servers are down: leave its handler alone for a while."""
    with get_engine().begin() as connection:
        begun = pauses.pause(connection, name, because)
    if begun:
        logger.warning("%s is paused: %s", name, because)
    _note(name, "paused")


def resume(name: str) -> None:
    """The handler was called and met no outage: resume."""
    with get_engine().begin() as connection:
        resumed = pauses.resume(connection, name)
    if resumed:
        logger.warning("%s has resumed", name)
    _note(name, "running")


def forget() -> None:
    """Look everything up again."""
    _seen_running.reset()


def _note(name: str, found: PauseState) -> None:
    if found == "running":
        _seen_running.get()[name] = time.monotonic()
    else:
        _seen_running.get().pop(name, None)
