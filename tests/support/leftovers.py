"""What a program of a test has left running."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil


def of_this_test(place: Path) -> list[psutil.Process]:
    """Every process whose command line or environment names the test's folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and (
                str(place) in " ".join(process.cmdline())
                or process.environ().get("TMPDIR", "").startswith(str(place))
            ):
                found.append(process)
    return found
