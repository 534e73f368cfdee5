"""Ctrl-C, and a stop by the system, for commands that must clean up."""

from __future__ import annotations

import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

FRAGILE = (
    "threading",
    "queue",
    "logging",
    "weakref",
    "importlib",
    "sqlalchemy.pool",
    "coverage.collector",
)
"""Modules in which an exception at any moment may leave a lock held, or be swallowed or logged."""

PUT_OFF = 0.01
"""Seconds after which an interrupt that found one of them at work comes again."""

MOST_PUT_OFF = 100
"""How often it is put off; then it is raised anyway: a second is long enough."""


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the body by a KeyboardInterrupt; afterwards neither disturbs."""
    tell = sys.unraisablehook

    def tell_others(swallowed: Any) -> None:
        # It comes again.
        if not isinstance(swallowed.exc_value, KeyboardInterrupt):
            tell(swallowed)

    interrupt = _Interrupt()
    sys.unraisablehook = tell_others
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each in (signal.SIGALRM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        sys.unraisablehook = tell


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A private temporary folder that is gone after the body, whenever Ctrl-C comes.

    Its name is known before it is made: `tempfile.TemporaryDirectory` leaves its folder behind
    where Ctrl-C comes between the making and the noting.
    """
    from cos_events.embedded.ownership import remove_folder

    folder = Path(tempfile.gettempdir()) / f"{prefix}{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        remove_folder(folder)


class _Interrupt:
    """Raises KeyboardInterrupt, again and again until the cleaning up is under way.

    One that is raised within a destructor or an import may be swallowed there, and one that is
    raised while cleaning up would cut that short. It comes again by a timer of the system: what may
    be called at any moment had better start no thread.
    """

    def __init__(self) -> None:
        self._put_off = 0

    def __call__(self, _number: int, frame: FrameType | None) -> None:
        under_way = sys.exc_info()[1]
        while under_way is not None:
            if isinstance(under_way, KeyboardInterrupt):
                return
            under_way = under_way.__context__
        if self._put_off < MOST_PUT_OFF and _is_fragile(frame):
            self._put_off += 1
            signal.setitimer(signal.ITIMER_REAL, PUT_OFF)
        else:
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            raise KeyboardInterrupt


def _is_fragile(frame: FrameType | None) -> bool:
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.startswith(FRAGILE) or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
