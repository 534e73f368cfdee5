"""State of one process or thread is not shared over a fork, nor a lock that a thread holds."""

import os
import threading
import time

import pytest
from forking import said_by_a_child

from cos_events import process
from cos_events.process import PerProcess, PerThread, forks


def made_by() -> list[int]:
    return [os.getpid()]


def test_a_process_makes_its_value_once_and_on_first_use() -> None:
    made: list[int] = []
    value = PerProcess(lambda: made.append(1) or object())
    assert made == []
    assert value.get() is value.get()
    assert made == [1]


def test_many_threads_make_one_value() -> None:
    together, made, seen = threading.Barrier(6), [], []
    value = PerProcess(lambda: made.append(1) or object())

    def get() -> None:
        together.wait(10)
        seen.append(value.get())

    threads = [threading.Thread(target=get) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1
    assert len(seen) == 6
    assert len(set(map(id, seen))) == 1


def test_a_reset_hands_back_the_old_value_and_the_next_use_makes_another() -> None:
    value = PerProcess(object)
    assert value.reset() is None
    old = value.get()
    assert value.reset() is old
    assert value.get() is not old


def test_a_forked_child_makes_its_own_value_and_the_parent_keeps_its() -> None:
    value = PerProcess(made_by)
    assert value.get() == [os.getpid()]
    assert said_by_a_child(lambda: str(value.get() == [os.getpid()])) == "True"
    assert value.get() == [os.getpid()]


def test_a_child_does_not_get_the_parents_value_to_close() -> None:
    value = PerProcess(made_by)
    value.get()
    assert said_by_a_child(lambda: str(value.reset())) == "None"


def test_a_fork_while_another_thread_makes_the_value_does_not_hang_the_child() -> None:
    making, go_on = threading.Event(), threading.Event()

    def make() -> list[int]:
        if os.getpid() == parent:
            making.set()
            go_on.wait(10)
        return made_by()

    parent = os.getpid()
    value = PerProcess(make)
    thread = threading.Thread(target=value.get)
    thread.start()
    assert making.wait(10)
    assert said_by_a_child(lambda: str(value.get() == [os.getpid()])) == "True"
    go_on.set()
    thread.join(10)
    assert value.get() == [parent]


def test_each_thread_makes_its_own_value() -> None:
    value = PerThread(object)
    seen = []
    thread = threading.Thread(target=lambda: seen.append((value.get(), value.get())))
    thread.start()
    thread.join(10)
    assert seen[0][0] is seen[0][1]
    assert value.get() is value.get()
    assert value.get() is not seen[0][0]


def test_a_forked_child_makes_its_own_threads_value() -> None:
    value = PerThread(made_by)
    assert value.get() == [os.getpid()]
    assert said_by_a_child(lambda: str(value.get() == [os.getpid()])) == "True"


def test_a_fork_waits_for_what_a_thread_has_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FORK_WAITS", 60.0)
    lock, held = threading.Lock(), threading.Event()

    def hold() -> None:
        with forks.wait(), lock:
            held.set()
            time.sleep(0.2)  # the fork begins meanwhile

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    assert said_by_a_child(lambda: str(lock.acquire(timeout=5))) == "True"
    thread.join(10)


def test_a_fork_does_not_wait_for_long_and_its_child_has_nothing_in_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "FORK_WAITS", 0.05)
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with forks.wait():
            held.set()
            go_on.wait(60)

    def fork_a_grandchild() -> str:
        monkeypatch.setattr(process, "FORK_WAITS", 60.0)
        with forks.wait():
            pass
        return said_by_a_child(lambda: "it went on")

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    assert said_by_a_child(fork_a_grandchild) == "it went on"
    go_on.set()
    thread.join(10)


def test_a_fork_goes_first_where_a_thread_lets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FORK_WAITS", 60.0)
    begun, ended, said = threading.Event(), threading.Event(), []

    def sweep() -> None:
        with forks.wait():
            begun.set()
            while not ended.is_set():
                forks.go_first()

    def fork() -> None:
        said.append(said_by_a_child(lambda: "forked"))
        ended.set()

    threads = [threading.Thread(target=sweep), threading.Thread(target=fork)]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    for each in threads:
        each.join(30)
    assert said == ["forked"]


def test_a_thread_may_fork_from_what_it_has_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FORK_WAITS", 60.0)

    def fork_a_grandchild() -> str:
        with forks.wait():
            said = said_by_a_child(lambda: "the child's child")
        return f"{said}, {said_by_a_child(lambda: 'and another')}"

    with forks.wait():
        assert said_by_a_child(fork_a_grandchild) == "the child's child, and another"
