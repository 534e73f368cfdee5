"""Celery's task message, protocol 2, for code that builds one without a Celery task.

See "Message Protocol" in Celery's documentation; a contract test holds this against Celery.
"""

from __future__ import annotations

import os
import socket
from typing import Any

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
"""The third part of a body: `[args, kwargs, embed]`."""

REDELIVERED = "cos_events_redelivered"
"""The header of a copy that the bus sends again: an earlier one may have killed its worker."""


def task_headers(name: str, task_id: str, argsrepr: str) -> dict[str, Any]:
    """The headers of a first attempt at task `name`.

    Args:
        name: of the task.
        task_id: its UUID.
        argsrepr: what logs and Flower show instead of the arguments: never their content.
    """
    return {
        "lang": "py",
        "task": name,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        "argsrepr": argsrepr,
        "kwargsrepr": "{}",
        "origin": f"cos-events{os.getpid()}@{socket.gethostname()}",
        "ignore_result": True,
    }
