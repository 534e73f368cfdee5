"""The worker step that turns deliveries into task executions, in place.

A broadcast carries the plain envelope. Here it becomes an execution of its subscription's Celery
task without a second trip over the broker, so that acknowledging the task acknowledges the
delivery. Everything of Celery's worker that this touches is in this file:
`Consumer.create_task_handler`, `on_decode_error`, `initial_prefetch_count`, `timer` and
`task_buckets`' strategies stay Celery's own.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

from celery import bootsteps
from celery.exceptions import Reject, TimeLimitExceeded, WorkerLostError
from celery.worker.consumer import Consumer, Tasks
from celery.worker.request import Request
from kombu.message import Message
from kombu.utils.uuid import uuid

from cos_events import telemetry
from cos_events.broker import body_of
from cos_events.errors import InvalidEnvelope
from cos_events.failure import fail
from cos_events.redis_guard import guard
from cos_events.relay import Relay
from cos_events.subscribers import Subscriber, subscribers_of
from cos_events.task_message import EMBED, REDELIVERED, task_headers
from cos_events.topology import PUBLISH_QUEUE

TASK_SECONDS = 0.05
"""How long the calls of one task shall take: what a killed worker has done is done again."""

MAX_AT_ONCE = 100
"""The most messages of one task, where the subscription handles them singly."""


class TaskMessage(Message):
    """A task message of Celery's protocol 2 made of one or more broker messages.

    Acknowledging or rejecting it does so to each of them, and calls `on_end`.
    """

    def __init__(
        self,
        subscriber: Subscriber,
        parts: list[Message],
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        task_id = uuid()
        super().__init__(
            body=json.dumps(
                [[[body_of(part).decode("utf-8", "surrogateescape") for part in parts]], {}, EMBED]
            ),
            content_type="application/json",
            content_encoding="utf-8",
            delivery_info={
                **parts[0].delivery_info,
                "redelivered": any(part.delivery_info.get("redelivered") for part in parts),
            },
            properties={"correlation_id": task_id, "delivery_mode": 2},
            headers=task_headers(subscriber.name, task_id, f"(<{len(parts)} events>,)")
            | {
                REDELIVERED: any(is_redelivered(part) for part in parts),
                telemetry.TRACEPARENTS: [_traceparent(part) for part in parts],
            },
            accept={"application/json"},
            channel=parts[0].channel,
            delivery_tag=parts[0].delivery_tag,
        )
        self.parts = parts
        self._on_end = on_end

    def ack(self, multiple: bool = False) -> None:
        """Acknowledge every part."""
        try:
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


def _traceparent(message: Message) -> str | None:
    headers = message.headers
    found = headers.get(telemetry.TRACEPARENT) if isinstance(headers, dict) else None
    return found if isinstance(found, str) else None


class DeliveryRequest(Request):
    """Celery's request, by its own extension point: a child that was killed is a failed attempt.

    By its hard time limit, by the system, or by the message itself: only the worker's main process
    can say so. Otherwise a message that kills its worker would come back for ever, and with it the
    others of its batch.
    """

    def info(self, safe: bool = False) -> Any:  # noqa: ARG002 - Celery's signature
        """What `celery inspect` and Flower show of it: how many events, never their content."""
        return super().info(safe=True)

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        """Note the failure of each envelope before Celery acknowledges or requeues them."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, TimeLimitExceeded | WorkerLostError):
            self._end_child()
            try:
                self._fail(error)
            except Reject:
                self.reject(requeue=True)
            else:
                self.acknowledge()
        super().on_failure(exc_info, send_failed_event, return_ok)

    def _end_child(self) -> None:
        # Celery kills it after this; until then its transaction holds the delivery row.
        if self.worker_pid:
            with suppress(ProcessLookupError):
                os.kill(int(self.worker_pid), signal.SIGKILL)

    def _fail(self, error: Exception) -> None:
        task: Any = self.task
        raws = self.args[0]
        with telemetry.consuming(task.name, raws, self.request_dict):
            for raw in raws:
                # What cannot be decoded is no attempt of the handler.
                with suppress(InvalidEnvelope):
                    fail(task, task.subscriber, raw, self.request_dict["retries"], error)


class Gathering:
    """The messages of one subscription that wait to be handled in one call."""

    def __init__(self, subscriber: Subscriber, timer: Any, run: Callable[[Message], None]) -> None:
        self._subscriber = subscriber
        self._timer = timer
        self._run = run
        self._parts: list[Message] = []
        self._timeout: Any = None
        # Without an event loop the worker's timer is a thread.
        self._lock = threading.Lock()

    def add(self, message: Message) -> None:
        """Take one more; a full batch runs at once."""
        with self._lock:
            self._parts.append(message)
            if len(self._parts) < self._subscriber.batch_size:
                if self._timeout is None and self._subscriber.batch_size > 1:
                    self._timeout = self._timer.call_after(
                        self._subscriber.batch_timeout, self.flush
                    )
                return
        self.flush()

    def alone(self, message: Message) -> None:
        """Run one by itself."""
        self._run(TaskMessage(self._subscriber, [message]))

    def flush(self) -> None:
        """Run what there is."""
        with self._lock:
            parts, self._parts = self._parts, []
            timeout, self._timeout = self._timeout, None
        if timeout is not None:
            timeout.cancel()
        if parts:
            self._run(TaskMessage(self._subscriber, parts))

    def forget(self) -> None:
        """Leave what there is to the broker: its connection is gone, it will deliver again."""
        with self._lock:
            self._parts.clear()


class Queueing(Gathering):
    """The messages of a subscription that handles them singly, while every process has some.

    A task costs more than a short handler. So what arrives meanwhile goes to the next free process
    in one task, though each message still is a call of its own: as many as its calls have lately
    taken `TASK_SECONDS` for. Where a process is free, a message never waits for another.

    Parameters:
        processes: how many of its tasks may run at once.
    """

    def __init__(
        self, subscriber: Subscriber, timer: Any, run: Callable[[Message], None], processes: int
    ) -> None:
        super().__init__(subscriber, timer, run)
        self._processes = processes
        self._running = 0
        self._at_once = 1

    def add(self, message: Message) -> None:
        """Take one more; it runs at once if a process is free."""
        with self._lock:
            self._parts.append(message)
        self.flush()

    def flush(self) -> None:
        """Run what there is, as far as processes are free."""
        while True:
            with self._lock:
                if not self._parts or self._running >= self._processes:
                    return
                parts = self._parts[: self._at_once]
                del self._parts[: self._at_once]
                self._running += 1
            end = partial(self._end, len(parts), time.monotonic())
            self._run(TaskMessage(self._subscriber, parts, end))

    def _end(self, count: int, begun: float) -> None:
        each = (time.monotonic() - begun) / count
        with self._lock:
            self._running -= 1
            self._at_once = max(1, min(MAX_AT_ONCE, 2 * count, int(TASK_SECONDS / each)))
        self.flush()


def may_queue(subscriber: Subscriber, task: Any) -> bool:
    """Whether several messages may share a task: nothing is asked for that counts by the task."""
    conf = task.app.conf
    limits = (
        *(task.time_limit, task.soft_time_limit, task.rate_limit),
        *(conf.task_time_limit, conf.task_soft_time_limit, conf.task_default_rate_limit),
    )
    return (
        subscriber.batch_size == 1
        and subscriber.order is None
        and not subscriber.pause_on
        and not any(limits)
    )


class DeliveryStep(bootsteps.StartStopStep):
    """Lets a Celery worker consume subscriptions' queues; does nothing for other queues."""

    requires = (Tasks,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._consumer = consumer
        self._subscribers = subscribers_of(consumer.app)
        self._gatherings: dict[str, Gathering] = {}
        self._make_task_handler = consumer.create_task_handler
        self._on_decode_error = consumer.on_decode_error
        consumer.create_task_handler = self._create_task_handler
        consumer.on_decode_error = self._undecodable
        # A batch can only fill if the broker hands out that many at once.
        consumer.initial_prefetch_count = max(
            consumer.initial_prefetch_count,
            2 * sum(s.batch_size for s in self._subscribers.values() if s.batch_size > 1),
        )

    def start(self, consumer: Any) -> None:
        """A new connection: its channel gets the guard that its transport needs."""
        if consumer.connection.transport.driver_type == "redis":
            guard(consumer.task_consumer.channel)

    def stop(self, _consumer: Consumer) -> None:
        """The connection is going away, and the gathered messages with it."""
        for gathering in self._gatherings.values():
            gathering.forget()

    def _create_task_handler(self) -> Callable[[Message], None]:
        run = self._make_task_handler()
        self._gatherings = {
            name: self._gather(subscriber, run) for name, subscriber in self._subscribers.items()
        }

        def on_message(message: Message) -> None:
            gathering = self._gathering_of(message)
            if gathering is None or is_retry(message):
                run(message)
            elif is_redelivered(message):
                # By itself: an earlier copy may have killed its worker.
                gathering.alone(message)
            else:
                gathering.add(message)

        return on_message

    def _gather(self, subscriber: Subscriber, run: Callable[[Message], None]) -> Gathering:
        consumer = self._consumer
        # Without an event loop an acknowledgement is only seen when the next message comes.
        if consumer.hub and may_queue(subscriber, consumer.app.tasks[subscriber.name]):
            return Queueing(subscriber, consumer.timer, run, consumer.pool.num_processes)
        return Gathering(subscriber, consumer.timer, run)

    def _gathering_of(self, message: Message) -> Gathering | None:
        name = (message.delivery_info or {}).get("routing_key")
        return self._gatherings.get(name) if isinstance(name, str) else None

    def _undecodable(self, message: Message, error: Exception) -> None:
        gathering = self._gathering_of(message)
        if gathering is None:
            self._on_decode_error(message, error)
        else:
            gathering.add(message)


class RelayStep(bootsteps.StartStopStep):
    """Runs the relay in each worker that consumes the publish task's queue."""

    requires = (Tasks,)

    def __init__(self, consumer: Consumer, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._relay: Relay | None = None

    def start(self, consumer: Consumer) -> None:
        """Start the relay, once: it lives through reconnections of the consumer."""
        if self._relay is None and PUBLISH_QUEUE in consumer.app.amqp.queues.consume_from:
            self._relay = Relay()
            self._relay.start()

    def shutdown(self, _consumer: Consumer) -> None:
        """End the relay with the worker."""
        if self._relay is not None:
            self._relay.stop()
            self._relay = None


def is_redelivered(message: Message) -> bool:
    """Whether an earlier copy of this message was in a worker's hands."""
    info, headers = message.delivery_info or {}, message.headers or {}
    return bool(info.get("redelivered") or headers.get(REDELIVERED))


def is_retry(message: Message) -> bool:
    """Whether this is a task message that `deliver` sent for a retry, fit for Celery to run.

    Anything else in a subscription's queue is a delivery: what Celery cannot read would otherwise
    stop the worker, or be gone.
    """
    headers = message.headers
    if not isinstance(headers, dict) or headers.get("task") != message.delivery_info["routing_key"]:
        return False
    try:
        (raws,), kwargs, embed = message.payload
        datetime.fromisoformat(headers["eta"] or "2000-01-01")
        limits: Any = headers["timelimit"]
        time_limit, soft_time_limit = limits
    except Exception:  # noqa: BLE001 - whatever it is, it is not what we sent
        return False
    return (
        kwargs == {}
        and isinstance(embed, dict)
        and not any(embed.values())
        and isinstance(raws, list)
        and all(isinstance(raw, str) for raw in raws)
        and isinstance(headers.get("id"), str)
        and isinstance(headers.get("retries"), int)
        and headers.get("expires") is None
        and isinstance(time_limit, int | float | None)
        and isinstance(soft_time_limit, int | float | None)
    )
