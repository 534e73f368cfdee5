"""Which messages share a task."""

from __future__ import annotations

import json
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

from cos_events import install, subscriber
from cos_events.consumer import DeliveryStep, is_wake_up, may_queue
from cos_events.gathering import (
    MAX_AT_ONCE,
    TASK_SECONDS,
    Lane,
    Queueing,
    TaskMessage,
    delivery_of,
    wake_up_of,
)
from cos_events.redis_transport import Channel
from cos_events.subscribers import Subscriber, subscribers_of
from cos_events.task_message import EMBED
from cos_events.topology import PUBLISH_QUEUE, PUBLISH_TASK


class Clock:
    """A monotonic clock that stands still until it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


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


@pytest.fixture
def ran() -> list[TaskMessage]:
    """The tasks that were run."""
    return []


class Part(Message):
    """A message that knows how it ended."""

    def __init__(self, body: str = "{}", **options: Any) -> None:
        options = {"delivery_info": {"routing_key": "q"}, **options}
        super().__init__(body=body, delivery_tag=body, **options)
        self.ended = ""

    def ack(self, multiple: bool = False) -> None:
        self.ended = "acknowledged"

    def reject(self, requeue: bool = False) -> None:
        self.ended = "rejected"


def at_once(function: Callable[[], None]) -> None:
    function()


@pytest.fixture
def lane(ran: list[TaskMessage]) -> Lane:
    """For a pool of two, whose loop turns after each message."""
    return Queueing(ran.append, lambda: 2, at_once).lane(delivery_of)  # type: ignore[arg-type] # a TaskMessage


def test_what_waits_runs_in_a_pool_that_has_grown_once_a_message_comes(
    ran: list[TaskMessage],
) -> None:
    processes = [1]
    lane = Queueing(ran.append, lambda: processes[0], at_once).lane(delivery_of)  # type: ignore[arg-type] # a TaskMessage
    for number in range(3):
        lane.add(Part(str(number)))
    assert sizes(ran) == [1]
    processes[0] = 3
    lane.add(Part("3"))
    assert sum(sizes(ran)) > 1


def sizes(ran: list[TaskMessage]) -> list[int]:
    return [len(each.parts) for each in ran]


def test_while_a_process_is_free_each_message_runs_at_once_by_itself(
    lane: Lane, ran: list[TaskMessage]
) -> None:
    for _ in range(2):
        lane.add(Part())
    assert sizes(ran) == [1, 1]


def test_while_all_are_busy_messages_gather_and_go_together(
    lane: Lane, ran: list[TaskMessage], clock: Clock
) -> None:
    parts = [Part(str(number)) for number in range(20)]
    for part in parts:
        lane.add(part)
    clock.now += 0.001
    ran[0].ack()
    clock.now += 0.001
    ran[1].reject()
    assert sizes(ran) == [1, 1, 2, 2]
    clock.now += 0.001
    ran[2].ack()
    assert sizes(ran) == [1, 1, 2, 2, 4]
    assert [part.ended for part in parts[:5]] == [
        *("acknowledged", "rejected", "acknowledged", "acknowledged", "")
    ]


def test_of_slow_calls_each_is_a_task(lane: Lane, ran: list[TaskMessage], clock: Clock) -> None:
    for number in range(10):
        lane.add(Part(str(number)))
    for number in range(6):
        clock.now += TASK_SECONDS
        ran[number].ack()
    assert sizes(ran) == [1] * 8


def test_messages_that_arrive_together_are_gathered_before_any_runs(
    ran: list[TaskMessage], clock: Clock
) -> None:
    turn: list[Callable[[], None]] = []
    lane = Queueing(ran.append, lambda: 1, turn.append).lane(delivery_of)  # type: ignore[arg-type] # a TaskMessage
    for sent in (1, 5):
        for number in range(sent):
            lane.add(Part(str(number)))
        assert len(turn) == 1
        turn.pop()()
        clock.now += 0.001
        ran[-1].ack()
    assert (sizes(ran), len(turn)) == ([1, 2], 1)


def test_a_pool_that_runs_tasks_in_the_loop_goes_back_to_it_after_each(clock: Clock) -> None:
    turns: list[Callable[[], None]] = []
    sizes: list[int] = []

    def run(message: Any) -> None:
        sizes.append(len(message.parts))
        clock.now += 1e-6
        message.ack()

    lane = Queueing(run, lambda: 1, turns.append).lane(delivery_of)
    for number in range(4):
        lane.add(Part(str(number)))
    for taken in (1, 3, 4):
        turns.pop()()
        assert sum(sizes) == taken
    assert turns == []


def test_the_lanes_of_a_worker_share_its_processes_in_fair_turn(
    ran: list[TaskMessage], clock: Clock
) -> None:
    queueing = Queueing(ran.append, lambda: 1, at_once)  # type: ignore[arg-type] # a TaskMessage
    busy, rare = (queueing.lane(delivery_of) for _ in range(2))
    for number in range(20):
        busy.add(Part(str(number), delivery_info={"routing_key": "busy"}))
    rare.add(Part(delivery_info={"routing_key": "rare"}))
    for each in ran:  # grows meanwhile
        clock.now += 0.001
        each.ack()
    tasks = [(each.headers["task"], len(each.parts)) for each in ran]
    assert tasks == [
        *(("busy", 1), ("busy", 2), ("rare", 1)),
        *(("busy", 4), ("busy", 8), ("busy", 5)),
    ]


def test_a_task_has_a_bounded_number_of_messages(
    lane: Lane, ran: list[TaskMessage], clock: Clock
) -> None:
    for number in range(1_000):
        lane.add(Part(str(number)))
    for each in ran:  # grows meanwhile
        clock.now += 1e-6
        each.ack()
    assert sum(sizes(ran)) == 1_000
    assert max(sizes(ran)) == MAX_AT_ONCE


def test_a_lane_may_allow_one_message_a_task(ran: list[TaskMessage], clock: Clock) -> None:
    lane = Queueing(ran.append, lambda: 1, at_once).lane(delivery_of, most=1)  # type: ignore[arg-type] # a TaskMessage
    for number in range(10):
        lane.add(Part(str(number)))
    for each in ran:  # grows meanwhile
        clock.now += 1e-6
        each.ack()
    assert sizes(ran) == [1] * 10


@pytest.mark.usefixtures("clock")
def test_a_task_that_cannot_be_run_leaves_its_process_to_the_next() -> None:
    ran: list[Any] = []

    def run(message: Any) -> None:
        ran.append(message)
        if len(ran) == 1:
            raise ValueError("broken")

    turns: list[Callable[[], None]] = []
    lane = Queueing(run, lambda: 1, turns.append).lane(delivery_of)
    for number in range(3):
        lane.add(Part(str(number)))
    with pytest.raises(ValueError, match="broken"):
        turns.pop()()
    turns.pop()()
    assert sizes(ran) == [1, 2]


def test_a_task_that_ends_twice_frees_its_process_once(
    ran: list[TaskMessage], clock: Clock
) -> None:
    lane = Queueing(ran.append, lambda: 1, at_once).lane(delivery_of, most=1)  # type: ignore[arg-type] # a TaskMessage
    for number in range(4):
        lane.add(Part(str(number)))
    clock.now += 0.001
    ran[0].ack()
    ran[0].reject()
    assert len(ran) == 2


def test_messages_of_a_lost_connection_are_forgotten(lane: Lane, ran: list[TaskMessage]) -> None:
    for number in range(10):
        lane.add(Part(str(number)))
    lane.forget()
    for each in tuple(ran):
        each.ack()
    assert sizes(ran) == [1, 1]


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


def wake_up(argument: Any, **headers: Any) -> Message:
    return Part(
        json.dumps([[argument], {}, EMBED]),
        content_type="application/json",
        content_encoding="utf-8",
        headers={"task": PUBLISH_TASK, **headers},
        delivery_info={"routing_key": PUBLISH_QUEUE},
    )


def test_wake_ups_that_gathered_are_one_publish_task_for_all_their_rows(
    ran: list[TaskMessage], clock: Clock
) -> None:
    lane = Queueing(ran.append, lambda: 1, at_once).lane(wake_up_of)  # type: ignore[arg-type] # a TaskMessage
    for ids in ([1], [2, 3], [4], [5, 6]):
        lane.add(wake_up(ids))
    for each in ran:  # grows meanwhile
        clock.now += 0.001
        each.ack()
    assert [each.payload[0] for each in ran] == [[[1]], [[2, 3, 4]], [[5, 6]]]
    assert {each.headers["task"] for each in ran} == {PUBLISH_TASK}
    assert [each.headers["argsrepr"] for each in ran][1] == "(<3 outbox ids>,)"


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
