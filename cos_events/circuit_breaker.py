"""Stops calls to a server that is down: closed, open, half-open."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

from cos_events import telemetry
from cos_events.error_text import one_line
from cos_events.errors import CosEventsError
from cos_events.telemetry import names

logger = logging.getLogger(__name__)

State = Literal["closed", "open", "half_open"]


class CircuitOpen(CosEventsError):
    """The call was not made: the server failed a moment ago and is left alone for a while."""


class CircuitBreaker:
    """Lets calls through until one fails, then none, then one as a probe.

    Thread-safe. Each state change is logged once and counted.

    Parameters:
        name: what the calls go to, for logs and health pages.
        reset_after: seconds that it stays open before one call may probe the server.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        *,
        reset_after: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.opened = 0
        self._reset_after = reset_after
        self._clock = clock
        self._opened_at: float | None = None
        self._prober: object = None
        self._lock = threading.Lock()
        self._show(opened=False)

    @property
    def state(self) -> State:
        """What the next call will meet."""
        opened_at = self._opened_at  # read once: another thread may close it meanwhile
        if opened_at is None:
            return "closed"
        waiting = self._clock() < opened_at + self._reset_after
        return "open" if waiting or self._prober is not None else "half_open"

    def __enter__(self) -> None:
        """Ask to make a call.

        Raises:
            CircuitOpen: not now.
        """
        with self._lock:
            match self.state:
                case "open":
                    raise CircuitOpen(f"{self.name} is left alone after a failure")
                case "half_open":
                    self._prober = _caller()

    def __exit__(self, kind: type[BaseException] | None, error: object, _trace: object) -> None:
        """Report how the call ended: any Exception is a failure.

        A cancelled task, or an interrupted program, says nothing about the server; nor, once the
        breaker is open, does a call that began earlier: then only the probe's outcome counts.
        """
        with self._lock:
            if self._opened_at is not None and self._prober != _caller():
                return
            self._prober = None
            if kind is None:
                self._close()
            elif issubclass(kind, Exception):
                self._fail(error)

    def _close(self) -> None:
        if self._opened_at is not None:
            logger.warning("%s is back", self.name)
            self._show(opened=False)
        self._opened_at = None

    def _fail(self, error: object) -> None:
        if self._opened_at is None:
            self.opened += 1
            logger.warning("%s is down: %s", self.name, one_line(error))
            telemetry.count(names.BREAKER_OPENED, self.name)
            self._show(opened=True)
        self._opened_at = self._clock()

    def _show(self, *, opened: bool) -> None:
        telemetry.show(names.BREAKER_OPEN, self.name, value=opened)


def _caller() -> object:
    """Who makes a call: a thread, or a task of its event loop."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), task
