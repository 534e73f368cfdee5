"""State of one process, or one thread of it, is not shared over a fork."""

import os
import threading
from collections.abc import Callable

from cos_events.process import PerProcess, PerThread


def said_by_a_child(say: Callable[[], str]) -> str:
    """What a forked child says before it ends."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        said = "it raised"
        try:
            said = say()
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


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
