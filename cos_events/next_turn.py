"""The next turn of a worker's event loop."""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

logger = logging.getLogger(__name__)


class NextTurn:
    """Calls functions once the loop has handed out what has arrived. Thread-safe.

    Kombu's loop calls what was given to `Hub.call_soon`, then what its timer has due, then waits
    for an event, for up to a second; so what either of them schedules "soon" waits too. If the pool
    is the worker's own process, a task runs within such a call, and its acknowledgement is
    scheduled soon. What is called here is an event itself.

    Parameters:
        hub: the loop.
    """

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._due: deque[Callable[[], object]] = deque()
        self._reader, self._writer = socket.socketpair()
        for each in (self._reader, self._writer):
            each.setblocking(False)
        hub.add_reader(self._reader, self._run)

    def __call__(self, function: Callable[[], object]) -> None:
        """Have this called; never after `close`."""
        self._due.append(function)
        # A full buffer wakes the loop as one byte does.
        with suppress(OSError):
            self._writer.send(b"\0")

    def close(self) -> None:
        """Call nothing any more."""
        self._hub.remove(self._reader)
        self._reader.close()
        self._writer.close()

    def _run(self) -> None:
        self._reader.recv(4_096)
        for _ in range(len(self._due)):
            try:
                self._due.popleft()()
            except self._hub.propagate_errors:
                raise
            except Exception:  # the worker's loop must continue
                logger.exception("a task could not be run; its messages wait for a reconnection")
