"""Several messages of a worker's queue, made into one Celery task.

A task costs more than what it does for one short message. So messages that arrive while every
process is busy share the next task; where a process is free none waits for another. A subscription
that handles messages in batches gathers them always.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from kombu.message import Message
from kombu.utils.uuid import uuid

from cos_events import telemetry
from cos_events.broker import body_of
from cos_events.task_message import EMBED, REDELIVERED, task_headers
from cos_events.topology import PUBLISH_TASK

TASK_SECONDS = 0.05
"""How long the calls of one task shall take: what a killed worker has done is done again."""

MAX_AT_ONCE = 100
"""The most messages of one task that were not gathered on purpose."""


class TaskMessage(Message):
    """A task message of Celery's protocol 2 made of one or more broker messages.

    Acknowledging or rejecting it does so to each of them, and calls `on_end`.

    Parameters:
        name: of the task.
        argument: its only one; of JSON values.
        argsrepr: what logs and Flower show instead.
        parts: the broker's messages.
        headers: more than those of Celery's protocol.
        on_end: called once they are acknowledged or rejected.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a message is made of
        self,
        name: str,
        argument: Any,
        argsrepr: str,
        parts: Sequence[Message],
        headers: dict[str, Any],
        on_end: Callable[[], object],
    ) -> None:
        task_id = uuid()
        super().__init__(
            body=json.dumps([[argument], {}, EMBED]),
            content_type="application/json",
            content_encoding="utf-8",
            delivery_info={
                **parts[0].delivery_info,
                "redelivered": any(part.delivery_info.get("redelivered") for part in parts),
            },
            properties={"correlation_id": task_id, "delivery_mode": 2},
            headers=task_headers(name, task_id, argsrepr) | headers,
            accept={"application/json"},
            channel=parts[0].channel,
            delivery_tag=parts[0].delivery_tag,
        )
        self.parts = parts
        self._on_end = on_end

    def ack(self, multiple: bool = False) -> None:
        """Acknowledge every part."""
        try:
            # Our RabbitMQ channel's; on Redis they go together in any case.
            with getattr(self.channel, "together", nullcontext)():
                for part in self.parts:
                    part.ack(multiple=multiple)
        finally:
            self._on_end()

    def reject(self, requeue: bool = False) -> None:
        """Reject every part."""
        try:
            for part in self.parts:
                part.reject(requeue=requeue)
        finally:
            self._on_end()


Merge = Callable[[Sequence[Message], Callable[[], object]], TaskMessage]
"""Makes one task message of several messages; the second argument is its `on_end`."""


def delivery_of(
    parts: Sequence[Message], on_end: Callable[[], object] = lambda: None
) -> TaskMessage:
    """The task that delivers these envelopes to the subscription whose queue they came from."""
    return TaskMessage(
        parts[0].delivery_info["routing_key"],
        [body_of(part).decode("utf-8", "surrogateescape") for part in parts],
        f"(<{len(parts)} events>,)",
        parts,
        {
            REDELIVERED: any(is_redelivered(part) for part in parts),
            telemetry.TRACEPARENTS: [_traceparent(part) for part in parts],
        },
        on_end,
    )


def wake_up_of(parts: Sequence[Message], on_end: Callable[[], object]) -> TaskMessage:
    """The publish task for the outbox ids of all these publish tasks."""
    ids = [each for part in parts for each in part.payload[0][0]]
    return TaskMessage(PUBLISH_TASK, ids, f"(<{len(ids)} outbox ids>,)", parts, {}, on_end)


def is_redelivered(message: Message) -> bool:
    """Whether an earlier copy of this message was in a worker's hands."""
    info, headers = message.delivery_info or {}, message.headers or {}
    return bool(info.get("redelivered") or headers.get(REDELIVERED))


def _traceparent(message: Message) -> str | None:
    headers = message.headers
    found = headers.get(telemetry.TRACEPARENT) if isinstance(headers, dict) else None
    return found if isinstance(found, str) else None


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

    Each kind of message has a lane of its own; the lanes share the processes in fair turn. So many
    messages of a lane go together as have lately taken `TASK_SECONDS`. Where a process is free, a
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
        """One for messages of which `merge` makes a task, of at most so many."""
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
                # Or its process would count as busy for ever.
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
