"""How the demo tells its subscribers which event is trouble: one small file a kind."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = "COS_EVENTS_DEMO_FOLDER"
"""The environment variable that names the folder of these files."""


def trouble(kind: str) -> Path:
    """The file whose existence means trouble of this kind; it holds the event's id."""
    return Path(os.environ[FOLDER]) / kind
