"""Several messages of a worker's queue, made into one Celery task.

A task costs more than the work for one short message. So messages that arrive while every process
is busy share the next task; when a process is free, none waits for another. A subscription that
handles messages in batches always gathers them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from kombu.message import Message

from cos_events.incoming import Merge

TASK_SECONDS = 0.05
"""How long the calls of one task should take: what a killed worker has done is done again."""

MAX_AT_ONCE = 100
"""The most messages of one task that were not gathered on purpose."""


class Batching:
    """Gathers messages until a batch is full, or its first one has waited long enough.

    Parameters:
        merge: makes the task.
        run: runs it.
        timer: the worker's.
        size: of a full batch.
        timeout: seconds that the first message waits.
    """

    def __init__(
        self, merge: Merge, run: Callable[[Message], None], timer: Any, size: int, timeout: float
    ) -> None:
        self._merge, self._run = merge, run
        self._timer, self._size, self._seconds = timer, size, timeout
        self._parts: list[Message] = []
        self._timeout: Any = None
        # Without an event loop the worker's timer is a thread.
        self._lock = threading.Lock()

    def add(self, message: Message) -> None:
        """Take one more; a full batch runs at once."""
        with self._lock:
            self._parts.append(message)
            if len(self._parts) < self._size:
                if self._timeout is None:
                    self._timeout = self._timer.call_after(self._seconds, self.flush)
                return
        self.flush()

    def flush(self) -> None:
        """Run what there is."""
        with self._lock:
            parts, self._parts = self._parts, []
            timeout, self._timeout = self._timeout, None
        if timeout is not None:
            timeout.cancel()
        if parts:
            self._run(self._merge(parts, lambda: None))

    def forget(self) -> None:
        """Leave what there is to the broker, whose connection is gone, or to the relay."""
        with self._lock:
            self._parts.clear()


class Queueing:
    """Gathers messages that arrive together, or while every process has a task.

    Each kind of message has its own lane; the lanes share the processes in fair turn. As many
    messages of a lane go together as have lately taken `TASK_SECONDS`. When a process is free, a
    message never waits for one that has not arrived.

    Parameters:
        run: runs a task.
        processes: how many tasks may run at once; asked each time, as pools grow and shrink.
        soon: calls a function once what has arrived is handed out.
    """

    def __init__(
        self,
        run: Callable[[Message], None],
        processes: Callable[[], int],
        soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self._run, self._processes, self._soon = run, processes, soon
        self._waiting: deque[Lane] = deque()
        self._running: set[object] = set()
        self._flushing = False
        # A pool of threads ends tasks in them.
        self._lock = threading.Lock()

    def lane(self, merge: Merge, most: int = MAX_AT_ONCE) -> Lane:
        """A lane for messages of which `merge` makes a task, at most this many at once."""
        return Lane(self, merge, most)

    def add(self, lane: Lane, message: Message) -> None:
        """Take one more into a lane; it runs soon if a process is free."""
        with self._lock:
            lane.parts.append(message)
            if len(lane.parts) == 1:
                self._waiting.append(lane)
            elif self._flushing or len(self._running) >= self._processes():
                return
            self._flushing = True
        self._soon(self._flush)

    def forget(self, lane: Lane) -> None:
        """Leave a lane's messages to the broker."""
        with self._lock:
            if lane.parts:
                lane.parts.clear()
                self._waiting.remove(lane)

    def _flush(self) -> None:
        failed: Exception | None = None
        for task, lane, parts in self._take():
            end = partial(self._end, task, lane, len(parts), time.monotonic())
            try:
                self._run(lane.merge(parts, end))
            except Exception as error:  # noqa: BLE001 - raised below, once the others have run
                # Otherwise its process would count as busy forever.
                end()
                failed = error
        if failed is not None:
            raise failed

    def _take(self) -> list[tuple[object, Lane, list[Message]]]:
        """Each task that may run now, with its messages."""
        taken = []
        with self._lock:
            self._flushing = False
            while self._waiting and len(self._running) < self._processes():
                lane = self._waiting.popleft()
                task = object()
                taken.append((task, lane, lane.parts[: lane.at_once]))
                del lane.parts[: lane.at_once]
                if lane.parts:
                    self._waiting.append(lane)
                self._running.add(task)
        return taken

    def _end(self, task: object, lane: Lane, count: int, begun: float) -> None:
        each = max((time.monotonic() - begun) / count, 1e-9)
        with self._lock:
            if task not in self._running:
                return
            self._running.remove(task)
            lane.at_once = max(1, min(lane.most, 2 * count, int(TASK_SECONDS / each)))
            more = bool(self._waiting)
        if more:
            self._soon(self._flush)


class Lane:
    """The messages of one kind that wait for a process.

    Attributes:
        merge: makes a task of them.
        most: how many of them may ever share a task.
        parts: the messages.
        at_once: how many of them may share the next task.
    """

    def __init__(self, queueing: Queueing, merge: Merge, most: int) -> None:
        self.merge, self.most = merge, most
        self.parts: list[Message] = []
        self.at_once = 1
        self._queueing = queueing

    def add(self, message: Message) -> None:
        """Take one more; it runs soon if a process is free."""
        self._queueing.add(self, message)

    def is_waiting(self) -> bool:
        """Whether it has a message that no task has taken yet."""
        return bool(self.parts)

    def forget(self) -> None:
        """Leave what there is to the broker, whose connection is gone, or to the relay."""
        self._queueing.forget(self)
