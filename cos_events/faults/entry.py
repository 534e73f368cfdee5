"""What every process of a fault run starts with: `python -m cos_events.faults.entry MODULE ARGS…`.

Runs a module as `python -m` does, once its kill points are in place. The process and its group end
when the process that started it does.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

from celery import signals

from cos_events.faults.kill_points import Trigger
from cos_events.faults.processes import FOLDER, PARENT, note_child, note_ready
from cos_events.parent import watch

PRELOAD = "COS_EVENTS_FAULTS_PRELOAD"
"""The environment variable with a module to import first: how a test breaks the product."""


def main() -> None:
    """Run the module that the arguments name."""
    folder = Path(os.environ[FOLDER])
    watch(int(os.environ[PARENT]), partial(os.killpg, 0, signal.SIGKILL))
    if broken := os.environ.get(PRELOAD):
        import_module(broken)
    Trigger(folder).install()

    signals.worker_process_init.connect(lambda **_: note_child(folder), weak=False)
    signals.worker_ready.connect(lambda **_: note_ready(folder), weak=False)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
