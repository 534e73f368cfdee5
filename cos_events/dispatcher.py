"""After a commit: wakes the publish task, without ever making the committing thread wait.

The committing thread only appends outbox ids to a queue; a background thread counts them and sends
them on, all that gathered meanwhile in one task. Whatever is lost here (a crash, a broker that is
down, a queue that is full) costs time, never an event: the rows wait in the outbox and the relay
finds them.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from celery import signals
from kombu.utils.uuid import uuid

from cos_events import broker, telemetry
from cos_events.circuit_breaker import CircuitBreaker, CircuitOpen
from cos_events.error_text import one_line
from cos_events.errors import BroadcastError
from cos_events.process import PerProcess, forks
from cos_events.settings import get_settings
from cos_events.task_message import EMBED, task_headers
from cos_events.telemetry import names
from cos_events.topology import PUBLISH_TASK, publish_queue

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Commits that may wait for the background thread; more are left to the relay."""

MAX_IDS = 500
"""The most outbox ids in one publish task."""

MAX_QUEUED = 10_000
"""Publish tasks that may wait on the broker without a publisher; more are left to the relay."""

LOOK_EVERY = 1_000
"""Publish tasks from one check of their queue's depth to the next."""

FLUSH_TIMEOUT = 2.0
"""Seconds that a process's end may wait for the last wake-ups to be sent."""


_Committed = tuple[Sequence[int], Sequence[str]]
"""The outbox ids of one commit, and the source module of each."""


class Dispatcher:
    """Sends wake-ups from one background thread.

    Parameters:
        send: hands the ids of one publish task to the broker; may raise, may take a while.
        interval: seconds from one publish task to the next; what is committed meanwhile goes with
            it, since a task costs more than the events in it. After a pause of that length, one
            more may follow at once: a late commit is often closely followed by another. So at most
            two are sent in an interval.
    """

    def __init__(self, send: Callable[[list[int]], None], interval: float) -> None:
        self.sent = 0
        self.dropped = 0
        self._send = send
        self._interval = interval
        self._closing = threading.Event()
        self._waiting: SimpleQueue[_Committed | None] = SimpleQueue()
        self._breaker = CircuitBreaker("the broker for wake-ups", reset_after=1.0)
        self._thread = threading.Thread(target=self._run, name="cos-events-dispatcher", daemon=True)
        self._thread.start()

    def wake(self, ids: Sequence[int], modules: Sequence[str] = ()) -> None:
        """Have these outbox rows published soon. Returns at once and never raises.

        Args:
            ids: of the rows.
            modules: the source module of each; they are counted as committed.
        """
        if self._waiting.qsize() < MAX_WAITING:
            self._waiting.put((ids, modules))
        else:
            self.dropped += len(ids)
            _count(modules)

    def close(self, timeout: float = FLUSH_TIMEOUT) -> None:
        """Send what waits, for at most `timeout` seconds, and end the thread."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        sent_at, may_follow, ended = 0.0, False, False
        while not ended:
            first = self._waiting.get()
            since = time.monotonic() - sent_at
            if since >= self._interval:
                may_follow = True
            elif may_follow:
                may_follow = False
            else:
                self._closing.wait(self._interval - since)
            sent_at = time.monotonic()
            with forks.wait():
                ids, ended = self._gather(first)
                for start in range(0, len(ids), MAX_IDS):
                    self._dispatch(ids[start : start + MAX_IDS])

    def _gather(self, first: _Committed | None) -> tuple[list[int], bool]:
        """All ids that wait; and whether that was the end."""
        ids: list[int] = []
        modules: list[str] = []
        each = first
        while each is not None:
            ids += each[0]
            modules += each[1]
            if self._waiting.empty():
                break
            each = self._waiting.get()
        _count(modules)
        return ids, each is None

    def _dispatch(self, ids: list[int]) -> None:
        try:
            with self._breaker:
                self._send(ids)
        except CircuitOpen:
            self.dropped += len(ids)
        except Exception as error:  # noqa: BLE001 - a thread that dies would wake nobody again
            self.dropped += len(ids)
            logger.debug("wake-up for %d rows not sent: %s", len(ids), one_line(error))
        else:
            self.sent += len(ids)


def _count(modules: Sequence[str]) -> None:
    for module, events in Counter(modules).items():
        telemetry.count(names.COMMITTED, module, by=events)


class PublishTaskSender:
    """Sends publish tasks over one connection of its own, opened on first use."""

    def __init__(self) -> None:
        self._connection: Any = None
        self._producer: Any = None
        self._queue = publish_queue()
        self._room = 0

    def __call__(self, ids: list[int]) -> None:
        """Send one publish task for these ids.

        Raises:
            BroadcastError: their queue is full, since no publisher is working.
            Exception: whatever the connection raises.
        """
        if self._producer is None:
            self._connection = broker.connect(confirm=False)
            self._producer = self._connection.Producer(auto_declare=False)
            self._room = 0
        task_id = uuid()
        try:
            # Declares the queue, too.
            self._look()
            self._room -= 1
            self._producer.publish(
                [[ids], {}, EMBED],
                exchange="",
                routing_key=self._queue.name,
                serializer="json",
                headers=task_headers(PUBLISH_TASK, task_id, f"(<{len(ids)} outbox ids>,)"),
                correlation_id=task_id,
                retry=False,
            )
        except BaseException:
            connection, self._connection, self._producer = self._connection, None, None
            if connection is not None:
                connection.collect()
            raise

    def _look(self) -> None:
        if self._room > 0:
            return
        queue = self._queue
        declared = self._producer.channel.queue_declare(
            queue.name, durable=queue.durable, auto_delete=queue.auto_delete
        )
        depth = declared.message_count
        self._room = min(LOOK_EVERY, MAX_QUEUED - depth)
        if self._room <= 0:
            raise BroadcastError(
                f"{depth:,} wake-ups wait on {queue.name}: no publisher is working"
            )


def _start() -> Dispatcher:
    dispatcher = Dispatcher(PublishTaskSender(), get_settings().wake_interval)
    atexit.register(dispatcher.close)
    return dispatcher


_dispatcher = PerProcess(_start)


def counts() -> tuple[int, int]:
    """How many outbox ids this process has sent wake-ups for, and how many it left to the relay."""
    dispatcher = _dispatcher.get()
    return dispatcher.sent, dispatcher.dropped


@signals.worker_process_shutdown.connect  # a pool's child ends without Python's exit handlers
def reset(**_: Any) -> None:
    """End this process's dispatcher; the next commit starts one with the then current settings."""
    if (dispatcher := _dispatcher.reset()) is not None:
        atexit.unregister(dispatcher.close)
        dispatcher.close()


def wake(ids: Sequence[int], modules: Sequence[str] = ()) -> None:
    """Have these committed outbox rows published soon. Returns at once and never raises.

    Args:
        ids: of the rows.
        modules: the source module of each; they are counted as committed.
    """
    try:
        _dispatcher.get().wake(ids, modules)
    except Exception:  # the row is committed: no error may reach the caller now
        logger.exception("the dispatcher could not be started; the relay will publish the rows")
