"""The worker's steps: deliveries and wake-ups become task executions, in place.

A broadcast carries the plain envelope. Here it becomes an execution of its subscription's Celery
task without a second trip over the broker, so that acknowledging the task acknowledges the
delivery. Wake-ups are tasks already; those that wait become one. All that we touch in Celery's
worker is in this file: `Consumer.create_task_handler`, `on_decode_error`,
`initial_prefetch_count`, `qos`, `task_consumer`, `task_buckets`, `controller`, `pool`, `hub`,
`timer`, `gossip`. Its strategies stay its own.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from celery import Celery, bootsteps
from celery.exceptions import Reject, Retry, TimeLimitExceeded, WorkerLostError
from celery.worker.consumer import Consumer, Gossip, Tasks
from celery.worker.request import Request
from kombu.message import Message

from cos_events import dead_letters, telemetry
from cos_events.error_text import one_line
from cos_events.errors import InvalidEnvelope
from cos_events.failure import fail
from cos_events.gathering import Batching, Lane, Queueing
from cos_events.incoming import delivery_of, is_redelivered, is_wake_up, retry_of, wake_up_of
from cos_events.next_turn import NextTurn
from cos_events.redis_guard import guard
from cos_events.redis_transport import Channel
from cos_events.relay import Relay
from cos_events.subscribers import Subscriber, subscribers_of
from cos_events.topology import PUBLISH_QUEUE, PUBLISH_TASK

logger = logging.getLogger(__name__)

WAKE_UPS_IN_HAND = 100
"""The least prefetch of a publisher: this many wake-ups may share one task."""

MAX_PREFETCH = 10_000
"""The most messages prefetched for the sake of batches. (AMQP and Celery count to 65,535.)"""


class DeliveryRequest(Request):
    """Celery's request, by its own extension point: a killed child is a failed attempt.

    Killed by its hard time limit, by the system, or by the message itself: only the worker's main
    process can say so. Otherwise a message that kills its worker would come back forever, and the
    others of its batch with it.
    """

    def info(self, safe: bool = False) -> Any:  # noqa: ARG002 - Celery's signature
        """What `celery inspect` and Flower show: how many events, never their content."""
        return super().info(safe=True)

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        """Note the failure of each envelope before Celery acknowledges or requeues them."""
        error = exc_info.exception
        if not isinstance(error, Retry):
            # An error within a retry is the handler's, whatever its type.
            error = getattr(error, "exc", error)
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
        # Celery only kills it after this; until then its transaction holds the delivery row.
        if self.worker_pid:
            with suppress(ProcessLookupError):
                os.kill(int(self.worker_pid), signal.SIGKILL)

    def _fail(self, error: Exception) -> None:
        task: Any = self.task
        raws, deaths = self.args[0], None if isinstance(error, WorkerLostError) else 0
        with telemetry.consuming(task.name, raws, self.request_dict):
            for raw in raws:
                retries = self.request_dict["retries"]
                try:
                    fail(task, task.subscriber, raw, retries, error, deaths=deaths)
                except InvalidEnvelope as invalid:
                    # Not an attempt of the handler, but acknowledged with its batch.
                    dead_letters.bury_unusable(task.app, task.name, raw, str(invalid))


def may_queue(subscriber: Subscriber, task: Any) -> bool:
    """Whether several messages may share a task: no option is set that counts per task."""
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
    """Lets a Celery worker consume the bus's queues; does nothing for other queues."""

    requires = (Tasks,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._consumer = consumer
        self._subscribers = subscribers_of(consumer.app)
        self._gatherings: dict[str, Batching | Lane] = {}
        self._others: tuple[Batching | Lane, ...] = ()
        self._gather: Callable[[Subscriber], Batching | Lane]
        self._next_turn: NextTurn | None = None
        self._make_task_handler = consumer.create_task_handler
        self._on_decode_error = consumer.on_decode_error
        consumer.create_task_handler = self._create_task_handler
        consumer.on_decode_error = self._undecodable
        self._widen_prefetch()

    def _widen_prefetch(self) -> int:
        """Make room for the batches of what is now consumed; returns by how many messages."""
        consumer = self._consumer
        consumed = consumer.app.amqp.queues.consume_from
        before = consumer.initial_prefetch_count
        # Only what the broker has handed out can be gathered. None means unbounded already.
        if before:
            consumer.initial_prefetch_count = max(
                before,
                min(self._batches(consumed), MAX_PREFETCH),
                self._wake_ups(consumed),
            )
        return int(consumer.initial_prefetch_count - before)

    def _wake_ups(self, consumed: Mapping[str, Any]) -> int:
        """The wake-ups held, where they count: those that are not acknowledged do not."""
        queue = consumed.get(PUBLISH_QUEUE)
        return WAKE_UPS_IN_HAND if queue is not None and not queue.no_ack else 0

    def _batches(self, consumed: Mapping[str, Any]) -> int:
        """The messages of a batch for each process, and at least two."""
        consumer = self._consumer
        processes = consumer.controller.max_concurrency or consumer.pool.limit
        return sum(
            max(2, processes) * each.batch_size
            for each in self._subscribers.values()
            if each.batch_size > 1 and each.name in consumed
        )

    def start(self, consumer: Any) -> None:
        """A new connection: its channel gets the guard that its transport needs."""
        if consumer.connection.transport.driver_type == "redis":
            guard(consumer.task_consumer.channel)

    def stop(self, _consumer: Consumer) -> None:
        """The connection is closing, and the gathered messages go with it."""
        for gathering in (*self._gatherings.values(), *self._others):
            gathering.forget()
        if self._next_turn is not None:
            self._next_turn.close()
            self._next_turn = None

    def _create_task_handler(self) -> Callable[[Message], None]:
        run, consumer = self._make_task_handler(), self._consumer
        # An application's default rate limit is for its own tasks.
        consumer.task_buckets[PUBLISH_TASK] = None
        queueing = None
        # Without an event loop an acknowledgement is only seen when the next message comes.
        if consumer.hub:
            self._next_turn = NextTurn(consumer.hub)
            queueing = Queueing(run, self._processes, self._next_turn)
        self._gatherings = {}
        self._gather = partial(self._gathering, run=run, queueing=queueing)
        singly = partial(Batching, run=run, timer=consumer.timer, size=1, timeout=0)
        wake_ups: Batching | Lane
        redelivered: Batching | Lane
        if queueing:
            wake_ups, redelivered = queueing.lane(wake_up_of), queueing.lane(delivery_of, most=1)
            if isinstance(channel := consumer.task_consumer.channel, Channel):
                # Wake-ups that arrive while a task runs are to run together after it.
                channel.is_busy = wake_ups.is_waiting
        else:
            wake_ups, redelivered = singly(wake_up_of), singly(delivery_of)
        # What waits for Celery's own limit would block the lane for the others.
        limited = singly(delivery_of)
        lanes = {
            each: limited if self._is_rate_limited(each) else redelivered
            for each in self._subscribers
        }
        self._others = (wake_ups, redelivered)

        def on_message(message: Message) -> None:
            gathering = self._gathering_of(message)
            if gathering is None:
                if is_wake_up(message):
                    wake_ups.add(message)
                elif (message.delivery_info or {}).get("routing_key") == PUBLISH_QUEUE:
                    _drop(message)
                else:
                    run(message)
            elif (retry := retry_of(message)) is not None:
                run(retry)
            elif is_redelivered(message):
                # By itself: an earlier copy may have killed its worker. In its turn: if that copy
                # is still held here, no worker died from it.
                lanes[message.delivery_info["routing_key"]].add(message)
            else:
                gathering.add(message)

        return on_message

    def _processes(self) -> int:
        """How many tasks may run at once: Celery's autoscaler starts processes for what waits."""
        scaler = self._consumer.controller.autoscaler
        return int(scaler.max_concurrency if scaler else self._consumer.pool.num_processes)

    def _gathering(
        self, subscriber: Subscriber, run: Callable[[Message], None], queueing: Queueing | None
    ) -> Batching | Lane:
        consumer = self._consumer
        if queueing and may_queue(subscriber, consumer.app.tasks[subscriber.name]):
            return queueing.lane(delivery_of)
        return Batching(
            delivery_of, run, consumer.timer, subscriber.batch_size, subscriber.batch_timeout
        )

    def _is_rate_limited(self, name: str) -> bool:
        app = self._consumer.app
        return bool(app.tasks[name].rate_limit or app.conf.task_default_rate_limit)

    def _gathering_of(self, message: Message) -> Batching | Lane | None:
        name = (message.delivery_info or {}).get("routing_key")
        if not isinstance(name, str):
            return None
        found = self._gatherings.get(name)
        if found is None and name in self._subscribers:
            found = self._gatherings[name] = self._gather(self._subscribers[name])
            # Perhaps it is consumed since `start_consuming` only.
            self._consumer.qos.increment_eventually(self._widen_prefetch())
        return found

    def _undecodable(self, message: Message, error: Exception) -> None:
        gathering = self._gathering_of(message)
        if gathering is None:
            self._on_decode_error(message, error)
        else:
            gathering.add(message)


def _drop(message: Message) -> None:
    """Celery would try to run it, whatever it contains, which might end the worker."""
    logger.warning("a message on %s that is not a wake-up was dropped", PUBLISH_QUEUE)
    message.ack()


class GossipStep(bootsteps.Step):
    """Garbage on the exchanges where workers report their state must not end any of them."""

    requires = (Gossip,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        hear = consumer.gossip.on_message

        def on_message(prepare: Callable[..., Any], message: Message) -> None:
            try:
                hear(prepare, message)
            except Exception as error:  # noqa: BLE001 - whatever it holds
                logger.warning("a message of Celery's gossip cannot be read: %s", one_line(error))

        consumer.gossip.on_message = on_message


def is_installed(app: Celery) -> bool:
    """Whether this application was given to `install`."""
    return DeliveryStep in app.steps["consumer"]


class RelayStep(bootsteps.StartStopStep):
    """Runs the relay in each worker that consumes the publish task's queue."""

    requires = (Tasks,)

    def __init__(self, consumer: Consumer, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._relay: Relay | None = None

    def start(self, consumer: Any) -> None:
        """Start the relay, once: it lives through reconnections of the consumer."""
        if self._relay is None and PUBLISH_QUEUE in consumer.app.amqp.queues.consume_from:
            self._relay = Relay()
            self._relay.start()

    def shutdown(self, _consumer: Consumer) -> None:
        """End the relay with the worker."""
        if self._relay is not None:
            self._relay.stop()
            self._relay = None
