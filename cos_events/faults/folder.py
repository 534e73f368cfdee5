"""The folder of a fault run, and an end for what a killed run left behind."""

from __future__ import annotations

import logging
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cos_events.embedded import EmbeddedPostgres, EmbeddedRabbitMQ, EmbeddedValkey
from cos_events.embedded.account import make_folder, server_account
from cos_events.embedded.ownership import (
    NOTE,
    is_private,
    live_owner,
    note_owner,
    read_owner,
    remove_folder,
    this_owner,
)
from cos_events.embedded.server import Server
from cos_events.errors import CosEventsError

logger = logging.getLogger(__name__)

PREFIX = "cos-events-faults-"
"""What the names of temporary folders begin with."""


@dataclass
class RunFolder:
    """Where a run has its data and logs.

    Attributes:
        path: of the folder.
        stays: whether it is left when the run is over.
    """

    path: Path
    stays: bool


@contextmanager
def own_folder(folder: Path | None = None) -> Iterator[RunFolder]:
    """A folder that nobody else uses while the body runs.

    Args:
        folder: a new one, which stays; None for a temporary one, gone at the end unless the body
            says that it stays.

    Raises:
        CosEventsError: the folder is there already.
    """
    _end_leftovers()
    temporary = Path(tempfile.gettempdir()).resolve()
    home = folder.resolve() if folder else temporary / f"{PREFIX}{secrets.token_hex(8)}"
    if home.exists():
        raise CosEventsError(f"{home} exists: name a new folder, or remove it")
    own = RunFolder(home, stays=folder is not None)
    try:
        make_folder(home, server_account())
        # Temporary for `_end_leftovers`; `embedded.reap_orphans` does not know all its servers.
        note_owner(home, this_owner(temporary=False))
        yield own
    finally:
        if own.stays:
            (home / NOTE).unlink(missing_ok=True)
        else:
            remove_folder(home)


def _end_leftovers() -> None:
    for folder in Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*"):
        try:
            if is_private(folder) and read_owner(folder) and live_owner(folder) is None:
                for server in _possible_servers(folder):
                    server.stop_leftover()
                remove_folder(folder)
        except (CosEventsError, OSError) as error:
            logger.warning("what a killed run left in %s could not be removed: %s", folder, error)


def _possible_servers(folder: Path) -> list[Server]:
    return [
        EmbeddedPostgres(folder / "postgres", ""),
        EmbeddedValkey(folder / "redis", ""),
        EmbeddedValkey(folder / "broker", ""),
        EmbeddedRabbitMQ(folder / "broker", ""),
    ]
