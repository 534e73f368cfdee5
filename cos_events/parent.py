"""A process that one of our commands has started, and that shall not outlive it."""

from __future__ import annotations

import os
import signal
import threading
import time

PARENT = "COS_EVENTS_PARENT"
"""The environment variable with the pid of that command."""


def environment_of_child() -> dict[str, str]:
    """The environment for a process that this one starts, and takes along when it ends."""
    return {**os.environ, PARENT: str(os.getpid())}


def has_parent() -> bool:
    """Whether one of our commands has started this process."""
    return PARENT in os.environ


def end_with_parent() -> None:
    """From now on end, as by SIGTERM, when the command that started this process has ended.

    Harmless where none did.
    """
    if has_parent():
        threading.Thread(target=_follow, args=(int(os.environ[PARENT]),), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
