"""Ctrl-C, and a stop by the system, for commands that must clean up."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the body by a KeyboardInterrupt; afterwards neither disturbs."""
    tell = sys.unraisablehook

    def tell_others(swallowed: Any) -> None:
        # It comes again.
        if not isinstance(swallowed.exc_value, KeyboardInterrupt):
            tell(swallowed)

    sys.unraisablehook = tell_others
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
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


def _interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt, again and again until the cleaning up is under way.

    One that is raised within a destructor or an import may be swallowed there, and one that is
    raised while cleaning up would cut that short.
    """
    under_way = sys.exc_info()[1]
    while under_way is not None:
        if isinstance(under_way, KeyboardInterrupt):
            return
        under_way = under_way.__context__
    again = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()
    raise KeyboardInterrupt
