"""A process that one of our commands has started, and that must not outlive it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial

PARENT = "COS_EVENTS_PARENT"
"""The environment variable with the pid of that command."""


def environment_of_child() -> dict[str, str]:
    """The environment for a process that this one starts, and that ends with it."""
    return {**os.environ, PARENT: str(os.getpid())}


def has_parent() -> bool:
    """Whether one of our commands has started this process."""
    return PARENT in os.environ


def end_with_parent() -> None:
    """From now on, end as if by SIGTERM when the command that started this process has ended.

    Harmless if no command did.
    """
    if has_parent():
        watch(int(os.environ[PARENT]), partial(os.kill, os.getpid(), signal.SIGTERM))


def watch(parent: int, end: Callable[[], object]) -> None:
    """From now on, have `end` called, in a thread, once this process has a different parent.

    Args:
        parent: the pid of the one it was started by.
        end: ends the process.
    """

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        end()

    threading.Thread(target=wait, daemon=True).start()
