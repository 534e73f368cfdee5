"""Who owns a folder with servers, noted so that a dead owner is told from a live one."""

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cos_events.embedded.process import Identity, identify, namespace, wait_until
from cos_events.errors import EmbeddedServerError

NOTE = "owner.json"
"""The file that names the owner, mode 0600."""

CLAIM = "claim.lock"
"""Held while an owner changes."""

LIFE = "life.lock"
"""Held as long as the owner lives. Asked only for an owner in another container, as children it
forked hold it on after its death; otherwise its number and start time tell."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that started the servers of a folder, and what it said of them."""

    process: Identity
    namespace: str
    """Where the number of `process` means something: another container numbers anew."""
    temporary: bool
    """Whether the folder goes when its owner goes."""
    database_url: str = ""
    redis_url: str = ""
    broker_url: str = ""
    """The URLs are empty until the servers answer."""


def this_owner(*, temporary: bool) -> Owner:
    """The caller as an owner."""
    found = identify(os.getpid())
    if found is None:
        raise EmbeddedServerError("This system shows no processes: mount /proc, or install ps.")
    return Owner(found, namespace(), temporary)


def live_owner(folder: Path) -> Owner | None:
    """The owner noted in `folder` if it lives, else None."""
    owner = read_owner(folder)
    if owner is None:
        return None
    if owner.namespace == namespace():
        return owner if owner.process.is_alive() else None
    with locked(folder, LIFE, wait=False) as got:
        return None if got else owner


def read_owner(folder: Path) -> Owner | None:
    """The owner noted in `folder`, dead or alive; None when none is, or not in full."""
    try:
        note = json.loads((folder / NOTE).read_text())
        return Owner(**{**note, "process": Identity(**note["process"])})
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
        return None


def note_owner(folder: Path, owner: Owner) -> None:
    """Note `owner` in `folder`, in place of the one before."""
    write_private(folder / NOTE, json.dumps(asdict(owner)))


def write_private(path: Path, text: str) -> None:
    """Write a file that only the caller can read, in one step."""
    fresh = path.with_suffix(".new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with os.fdopen(os.open(fresh, flags, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)


@contextmanager
def locked(folder: Path, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock `name` of `folder`: CLAIM or LIFE; gives whether it was got."""
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def is_private(folder: Path) -> bool:
    """Whether `folder` is a real folder of the caller's that nobody else can write in.

    Anyone may put a folder of that name among the temporary ones.
    """
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & others
    )


def remove_folder(folder: Path) -> None:
    """Remove `folder` and all in it; a killed server may still write there for a moment.

    Raises:
        EmbeddedServerError: something in it could not be removed.
    """

    def removed() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    if not wait_until(removed, 5.0):
        raise EmbeddedServerError(f"The folder {folder} could not be removed: remove it by hand.")
