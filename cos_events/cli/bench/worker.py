"""What the workers under test do besides: say that they are ready, and note the times."""

from __future__ import annotations

import os
from pathlib import Path

from celery import signals

from cos_events.cli.bench.marks import Marks
from cos_events.process import PerProcess

FOLDER = "COS_EVENTS_BENCH_FOLDER"
"""The environment variable that names the folder with the marks."""

HANDLED = "handled"
"""The file of the times at which handlers were called."""

handled = PerProcess(lambda: Marks(Path(os.environ[FOLDER]) / HANDLED))
"""The marks of this process's handlers."""


@signals.worker_ready.connect
def _say(**_: object) -> None:
    # As Celery does, but at any log level: what it logs of each task costs time.
    print("worker ready.", flush=True)
