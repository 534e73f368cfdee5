"""What fault tests need of the machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cos_events.faults import rabbitmq


@pytest.fixture
def rabbitmq_program() -> None:
    """The system's own rabbitmq-server: no wheel carries one."""
    if shutil.which("rabbitmq-server") or Path(rabbitmq.SCRIPTS).exists():
        return
    if os.environ.get("CI"):
        pytest.fail("rabbitmq-server is not installed, and in CI it must", pytrace=False)
    pytest.skip("rabbitmq-server is not installed")
