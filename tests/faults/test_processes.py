"""The processes of a fault run."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cos_events.faults.processes import Process


def test_a_start_that_an_interrupt_overtook_launches_nothing_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        late.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    process = Process("late", ["cos_events"], tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        process.start()
    process.stop()
    late[0].run()
    assert (process.groups, process.log.exists()) == ([], False)
