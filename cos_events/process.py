"""What a fork must not share: state of one process or thread, and locks that a thread holds."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")

FORK_WAITS = 5.0
"""Seconds. A thread that takes longer is waiting for a server, and holds no lock meanwhile."""


class PerProcess(Generic[T]):
    """Makes its value on first use, and again in a forked child.

    The parent's value is only forgotten in the child, never closed there: its sockets are shared.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._value: T | None = None

    def get(self) -> T:
        """The value of this process."""
        if self._value is None:
            with self._lock:
                if self._value is None:
                    self._value = self._make()
        return self._value

    def reset(self) -> T | None:
        """Forget the value, so that the next use makes a new one; returns the old one."""
        with self._lock:
            old, self._value = self._value, None
        return old


class PerThread(threading.local, Generic[T]):
    """Makes its value on first use in each thread, and again after a fork."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._pid = 0
        self._value: T | None = None

    def get(self) -> T:
        """The value of this thread."""
        if self._value is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._value = self._make()
        return self._value


class _Forks:
    """Makes a fork of this process wait for what other threads are doing."""

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(
            before=self._hold, after_in_parent=self._release, after_in_child=self._forget
        )

    def _forget(self) -> None:
        self._changed = threading.Condition()
        self._busy: set[int] = set()
        self._forking = False

    def _hold(self) -> None:
        self._changed.acquire()
        self._forking = True
        own = {threading.get_ident()}
        self._changed.wait_for(lambda: self._busy <= own, FORK_WAITS)

    def _release(self) -> None:
        self._forking = False
        self._changed.notify_all()
        self._changed.release()

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Do this in a thread while no child is forked; not within another such.

        A pool's child is forked whenever one is replaced. If a thread held a library's lock at that
        moment, such as a connection pool's, it would never be released in the child.
        """
        self._begin()
        try:
            yield
        finally:
            self._end()

    def go_first(self) -> None:
        """Between two things in one `wait`: let a fork that waits go first."""
        if threading.get_ident() in self._busy:
            self._end()
            self._begin()

    def _begin(self) -> None:
        with self._changed:
            # A fork that also waited for newcomers might wait forever.
            self._changed.wait_for(lambda: not self._forking)
            self._busy.add(threading.get_ident())

    def _end(self) -> None:
        with self._changed:
            self._busy.discard(threading.get_ident())
            self._changed.notify_all()


forks = _Forks()
