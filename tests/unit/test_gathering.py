"""Which messages share a task."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
from messages import Part, at_once, wake_up

from cos_events.gathering import (
    MAX_AT_ONCE,
    TASK_SECONDS,
    Lane,
    Queueing,
)
from cos_events.incoming import TaskMessage, delivery_of, wake_up_of
from cos_events.topology import PUBLISH_TASK


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
def ran() -> list[TaskMessage]:
    """The tasks that were run."""
    return []


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


def test_a_task_that_cannot_be_acknowledged_leaves_its_process_to_the_next(
    ran: list[TaskMessage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where Redis may not write at this moment."""
    lane = Queueing(ran.append, lambda: 1, at_once).lane(delivery_of, most=1)  # type: ignore[arg-type] # a TaskMessage
    parts = [Part(str(number)) for number in range(3)]
    for part in parts:
        lane.add(part)
    monkeypatch.setattr(parts[0], "ack", Mock(side_effect=OSError("read only")))
    monkeypatch.setattr(parts[1], "reject", Mock(side_effect=OSError("read only")))
    with pytest.raises(OSError, match="read only"):
        ran[0].ack()
    with pytest.raises(OSError, match="read only"):
        ran[1].reject(requeue=True)
    assert len(ran) == 3


def test_messages_of_a_lost_connection_are_forgotten(lane: Lane, ran: list[TaskMessage]) -> None:
    for number in range(10):
        lane.add(Part(str(number)))
    lane.forget()
    for each in tuple(ran):
        each.ack()
    assert sizes(ran) == [1, 1]


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
