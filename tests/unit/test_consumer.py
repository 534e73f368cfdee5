"""What a worker of the bus makes of the messages of its queues."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.worker.consumer import Consumer
from kombu.asynchronous import Hub
from kombu.common import QoS
from kombu.message import Message
from messages import Part, wake_up

from cos_events import install, subscriber
from cos_events.consumer import DeliveryStep, may_queue
from cos_events.incoming import is_wake_up
from cos_events.redis_transport import Channel
from cos_events.subscribers import Subscriber, subscribers_of
from cos_events.topology import PUBLISH_TASK


@pytest.fixture
def declared() -> Callable[..., Subscriber]:
    """A subscriber of an application, whose `app` is an attribute of the function."""

    def declare(handler: Callable[..., Any] = print, **options: Any) -> Subscriber:
        name = f"queueing_{time.monotonic_ns()}"
        subscriber(name, **options)(handler)
        app = install(Celery("unit", set_as_current=False))
        app.finalize()
        declare.task = app.tasks[name]  # type: ignore[attr-defined]
        return subscribers_of(app)[name]

    return declare


@pytest.mark.parametrize(
    ("options", "may"),
    [
        ({}, True),
        ({"max_retries": 3}, True),
        ({"time_limit": 10}, False),
        ({"soft_time_limit": 10}, False),
        ({"rate_limit": "10/s"}, False),
        ({"order_by": "request_id"}, False),
        ({"pause_on": ConnectionError}, False),
        ({"batch_size": 10}, False),
    ],
    ids=str,
)
def test_what_counts_by_the_task_keeps_messages_apart(
    declared: Callable[..., Subscriber], options: dict[str, Any], may: bool
) -> None:
    made = declared(lambda _message: None, **options)
    assert may_queue(made, declared.task) is may  # type: ignore[attr-defined]


def test_a_time_limit_of_the_whole_application_keeps_messages_apart(
    declared: Callable[..., Subscriber],
) -> None:
    made = declared(lambda _message: None)
    task = declared.task  # type: ignore[attr-defined]
    task.app.conf.task_time_limit = 60
    assert not may_queue(made, task)


class Worker:
    """What of Celery's consumer the step uses; `ran` are the tasks that Celery was given."""

    initial_prefetch_count = 4
    timer = Mock()

    bucket_for_task: Callable[[Any], Any]

    def __init__(self, app: Celery) -> None:
        self.app, self.ran = app, list[Any]()
        self.hub = Hub()
        self.task_buckets: dict[str, Any] = {}
        self.task_consumer = SimpleNamespace(channel=Mock(spec=Channel))
        self.qos = QoS(Mock(), self.initial_prefetch_count)
        self.pool = SimpleNamespace(num_processes=1, limit=1)
        self.controller = SimpleNamespace(max_concurrency=1, autoscaler=None)

    def create_task_handler(self) -> Callable[[Any], None]:
        return self.ran.append

    def on_decode_error(self, message: Message, error: Exception) -> None:
        raise error


def test_copies_that_wait_for_celerys_rate_limit_hold_up_no_other_subscription(
    declared: Callable[..., Subscriber],
) -> None:
    slow = declared(rate_limit="1/h").name
    worker = Worker(declared.task.app)  # type: ignore[attr-defined]
    plain = f"{slow}_plain"
    subscriber(plain)(lambda _message: None)
    worker.app.finalize()
    step = DeliveryStep(worker)
    on_message = worker.create_task_handler()
    for name in (slow, slow, plain, plain):
        on_message(Part(delivery_info={"routing_key": name, "redelivered": True}))  # type: ignore[arg-type] # a Message
    worker.hub.run_once()
    assert [each.headers["task"] for each in worker.ran] == [slow, slow, plain]
    step.stop(worker)  # type: ignore[arg-type] # as much of it as is used
    worker.hub.close()


def test_a_worker_makes_room_for_batches_of_what_it_consumes(
    declared: Callable[..., Subscriber],
) -> None:
    batched = declared(batch_size=100)
    app = declared.task.app  # type: ignore[attr-defined]
    for consumed, prefetch in ([batched.name], 200), (["other"], 4):
        app.amqp.queues.select(consumed)
        worker = Worker(app)
        DeliveryStep(worker)
        assert worker.initial_prefetch_count == prefetch


def test_a_worker_without_a_bound_gets_none(declared: Callable[..., Subscriber]) -> None:
    batched = declared(batch_size=100)
    app = declared.task.app  # type: ignore[attr-defined]
    app.amqp.queues.select([batched.name])
    worker = Worker(app)
    worker.initial_prefetch_count = 0
    DeliveryStep(worker)
    assert worker.initial_prefetch_count == 0


def test_a_worker_makes_room_for_batches_of_what_it_begins_to_consume(
    declared: Callable[..., Subscriber],
) -> None:
    batched = declared(batch_size=100)
    app = declared.task.app  # type: ignore[attr-defined]
    app.amqp.queues.select(["other"])
    worker = Worker(app)
    step = DeliveryStep(worker)
    on_message = worker.create_task_handler()
    app.amqp.queues.select_add(batched.name)
    for _ in range(2):
        on_message(Part(delivery_info={"routing_key": batched.name}))  # type: ignore[arg-type] # a Message
    assert (worker.initial_prefetch_count, worker.qos.value) == (200, 200)
    step.stop(worker)  # type: ignore[arg-type] # as much of it as is used
    worker.hub.close()


def test_an_applications_default_rate_limit_does_not_hold_up_wake_ups() -> None:
    worker = Worker(install(Celery("unit", set_as_current=False)))
    worker.app.conf.task_default_rate_limit = "1/h"
    worker.app.finalize()
    worker.bucket_for_task = partial(Consumer.bucket_for_task, worker)
    Consumer.reset_rate_limits(worker)
    assert worker.task_buckets[PUBLISH_TASK] is not None
    step = DeliveryStep(worker)
    worker.create_task_handler()
    assert worker.task_buckets[PUBLISH_TASK] is None
    step.stop(worker)  # type: ignore[arg-type] # as much of it as is used
    worker.hub.close()


def test_while_a_wake_up_waits_for_a_task_to_end_further_ones_stay_in_redis() -> None:
    worker = Worker(install(Celery("unit", set_as_current=False)))
    step = DeliveryStep(worker)
    on_message, channel = worker.create_task_handler(), worker.task_consumer.channel
    on_message(wake_up([1]))
    worker.hub.run_once()
    assert not channel.is_busy()
    on_message(wake_up([2]))
    assert channel.is_busy()
    worker.ran[0].ack()
    worker.hub.run_once()
    assert not channel.is_busy()
    assert [each.payload[0] for each in worker.ran] == [[[1]], [[2]]]
    step.stop(worker)  # type: ignore[arg-type] # as much of it as is used
    worker.hub.close()


def test_a_worker_that_scales_hands_out_tasks_for_all_processes_it_may_have() -> None:
    worker = Worker(install(Celery("unit", set_as_current=False)))
    worker.controller.autoscaler = SimpleNamespace(max_concurrency=2)
    step = DeliveryStep(worker)
    on_message = worker.create_task_handler()
    for number in range(2):
        on_message(wake_up([number]))
        worker.hub.run_once()
    assert len(worker.ran) == 2
    step.stop(worker)  # type: ignore[arg-type] # as much of it as is used
    worker.hub.close()


@pytest.mark.parametrize(
    ("message", "gathers"),
    [
        pytest.param(wake_up([1, 2]), True, id="ids"),
        pytest.param(wake_up([]), True, id="no ids"),
        pytest.param(wake_up([1], task="celery.ping"), False, id="another task"),
        pytest.param(wake_up([1], eta="2030-01-01T00:00:00"), False, id="later"),
        pytest.param(wake_up(["1"]), False, id="text as id"),
        pytest.param(wake_up([True]), False, id="bool as id"),
        pytest.param(wake_up("12"), False, id="text"),
        pytest.param(wake_up({"1": 2}), False, id="a mapping"),
        pytest.param(Part("\xff", headers={"task": PUBLISH_TASK}), False, id="no JSON"),
    ],
)
def test_only_what_a_dispatcher_sends_is_gathered_as_a_wake_up(
    message: Message, gathers: bool
) -> None:
    assert is_wake_up(message) is gathers
