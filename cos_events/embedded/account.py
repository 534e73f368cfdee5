"""The account the servers run as: the caller's, or `nobody` when the caller is root."""

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from cos_events.errors import EmbeddedServerError


@dataclass(frozen=True, slots=True)
class Account:
    """A user id and a group id that a child process takes on."""

    uid: int
    gid: int


def server_account() -> Account | None:
    """`nobody` when the caller is root (PostgreSQL refuses root), else None: the caller's own.

    Raises:
        EmbeddedServerError: the caller is root and there is no user `nobody`.
    """
    if os.geteuid() != 0:
        return None
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedServerError(
            "As root the embedded servers run as the user 'nobody', and this system has none: "
            "add it to /etc/passwd, or start as another user."
        ) from None
    return Account(nobody.pw_uid, nobody.pw_gid)


def require_passwd_entry() -> None:
    """Check up front what PostgreSQL's initdb insists on.

    Raises:
        EmbeddedServerError: the caller's user id has no passwd entry.
    """
    uid = os.geteuid()
    try:
        pwd.getpwuid(uid)
    except KeyError:
        raise EmbeddedServerError(
            f"PostgreSQL's initdb refuses the user id {uid}, which has no passwd entry: "
            "add one to /etc/passwd, or start as a user that has one."
        ) from None


def make_folder(folder: Path, account: Account | None) -> None:
    """Make `folder` private to the caller; a folder that exists is left as it is.

    For root it can be passed through, but not listed, by the group of `account`: the servers must
    reach their data inside.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700)
    if account is not None:
        os.chown(folder, -1, account.gid)
        folder.chmod(0o710)


def hand_over(path: Path, account: Account | None) -> None:
    """Give `path`, and only it, to `account`."""
    if account is not None:
        os.chown(path, account.uid, account.gid)


def require_reach(path: Path, account: Account | None) -> None:
    """Check that `account` can enter the folder `path` and all its parents.

    Raises:
        EmbeddedServerError: one is closed to it; the text names the outermost such folder.
    """
    if (folder := closed_folder(path, account)) is not None:
        raise EmbeddedServerError(
            f"As root the embedded servers run as 'nobody', which cannot enter {folder}: "
            f"run `chmod o+x {folder}`, or choose a place outside it for {path}."
        )


def closed_folder(path: Path, account: Account | None) -> Path | None:
    """The outermost of `path` and its parents that `account` cannot enter; None if it can."""
    if account is None:
        return None
    folders = reversed([path, *path.parents])
    return next((each for each in folders if not _may_enter(each.stat(), account)), None)


def _may_enter(status: os.stat_result, account: Account) -> bool:
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)
