"""The virtual environments of the peers: made once, in the user's cache, from pinned versions."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

INSTALL_SECONDS = 500.0
"""How long installing one environment may take."""


def python_of(requirements: str) -> Path:
    """The Python of the environment that has these, made first if it is missing.

    Args:
        requirements: the name of a file beside this one.

    Raises:
        subprocess.SubprocessError: it could not be made.
    """
    pinned = HERE / requirements
    key = hashlib.sha256(pinned.read_bytes() + sys.version.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "cos-events" / f"{pinned.stem}-{key}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        print(f"installing {requirements} into {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), *install, "-r", str(pinned)],
        ):
            subprocess.run(command, check=True, stdout=sys.stderr, timeout=INSTALL_SECONDS)
        complete.touch()
    return python
