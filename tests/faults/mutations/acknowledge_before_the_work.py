"""A broken build: the broker's message is acknowledged when a handler begins, not when it ends."""

from __future__ import annotations

from typing import Any

from cos_events import declaration

declare = declaration.shared_task


def declare_early(**options: Any) -> Any:
    return declare(**{**options, "acks_late": False})


declaration.shared_task = declare_early
