"""State that belongs to one process, or one thread of it, and must not be shared over a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Makes its value on first use, and anew in a forked child.

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
    """Makes its value on first use in each thread, and anew after a fork."""

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
