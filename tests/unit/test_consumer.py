"""Which messages share a task."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from kombu.message import Message

from cos_events import install, subscriber
from cos_events.consumer import MAX_AT_ONCE, TASK_SECONDS, Queueing, TaskMessage, may_queue
from cos_events.subscribers import Subscriber, subscribers_of


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

    def __init__(self, body: str = "{}") -> None:
        super().__init__(body=body, delivery_info={"routing_key": "q"}, delivery_tag=body)
        self.ended = ""

    def ack(self, multiple: bool = False) -> None:
        self.ended = "acknowledged"

    def reject(self, requeue: bool = False) -> None:
        self.ended = "rejected"


@pytest.fixture
def queueing(declared: Callable[..., Subscriber], ran: list[TaskMessage]) -> Queueing:
    """For a pool of two."""
    return Queueing(declared(), None, ran.append, 2)  # type: ignore[arg-type] # runs a TaskMessage


def sizes(ran: list[TaskMessage]) -> list[int]:
    return [len(each.parts) for each in ran]


def test_while_a_process_is_free_each_message_runs_at_once_by_itself(
    queueing: Queueing, ran: list[TaskMessage]
) -> None:
    for _ in range(2):
        queueing.add(Part())
    assert sizes(ran) == [1, 1]


def test_while_all_are_busy_messages_gather_and_go_together(
    queueing: Queueing, ran: list[TaskMessage], clock: Clock
) -> None:
    parts = [Part(str(number)) for number in range(20)]
    for part in parts:
        queueing.add(part)
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


def test_of_slow_calls_each_is_a_task(
    queueing: Queueing, ran: list[TaskMessage], clock: Clock
) -> None:
    for number in range(10):
        queueing.add(Part(str(number)))
    for number in range(6):
        clock.now += TASK_SECONDS
        ran[number].ack()
    assert sizes(ran) == [1] * 8


def test_a_task_has_a_bounded_number_of_messages(
    queueing: Queueing, ran: list[TaskMessage], clock: Clock
) -> None:
    for number in range(1_000):
        queueing.add(Part(str(number)))
    for each in ran:  # grows meanwhile
        clock.now += 1e-6
        each.ack()
    assert sum(sizes(ran)) == 1_000
    assert max(sizes(ran)) == MAX_AT_ONCE


def test_messages_of_a_lost_connection_are_forgotten(
    queueing: Queueing, ran: list[TaskMessage]
) -> None:
    for number in range(10):
        queueing.add(Part(str(number)))
    queueing.forget()
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
