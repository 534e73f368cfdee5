"""Servers for as long as their owner lives, and an end for those it left behind."""

import json
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cos_events.embedded.account import make_folder, server_account
from cos_events.embedded.failures import explained
from cos_events.embedded.ownership import (
    CLAIM,
    LIFE,
    NOTE,
    Owner,
    is_private,
    live_owner,
    locked,
    note_owner,
    read_owner,
    remove_folder,
    this_owner,
    write_private,
)
from cos_events.embedded.postgres import EmbeddedPostgres
from cos_events.embedded.rabbitmq import EmbeddedRabbitMQ
from cos_events.embedded.server import Server
from cos_events.embedded.valkey import EmbeddedValkey
from cos_events.errors import EmbeddedServerError

logger = logging.getLogger(__name__)

PREFIX = "cos-events-"
"""What the names of temporary folders begin with."""


@dataclass(frozen=True, slots=True)
class Servers:
    """A PostgreSQL and a Valkey that answer.

    Attributes:
        database_url: For SQLAlchemy, with the password; not in the repr.
        redis_url: For redis and Celery, with the password; not in the repr.
        broker_url: The broker that goes with them: that Valkey, or another; not in the repr.
        folder: Where their data and logs are.
        started: Those that this process has started; empty for another's.
    """

    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    broker_url: str = field(repr=False)
    folder: Path
    started: tuple[Server, ...] = field(default=(), repr=False, compare=False)

    def check_alive(self) -> None:
        """Check those that this process has started.

        Raises:
            EmbeddedServerError: one has ended.
        """
        for server in self.started:
            server.check_alive()


@dataclass
class OwnFolder:
    """A folder that nobody else uses.

    Attributes:
        path: Of the folder.
        stays: Whether it is left at the end.
    """

    path: Path
    stays: bool


@contextmanager
def own_folder(folder: Path | None = None) -> Iterator[OwnFolder]:
    """A folder for servers of the caller's own, each in one right below it.

    Parameters:
        folder: A new one, which stays. None means a private temporary folder, gone at the end
            unless the body says that it stays.

    Raises:
        EmbeddedServerError: the folder is there already, or cannot be made.
    """
    reap_orphans()
    owner = this_owner(temporary=folder is None)
    home = _temporary_folder() if folder is None else folder.resolve()
    if home.exists():
        raise EmbeddedServerError(f"{home} exists: name a new folder, or remove it")
    own = OwnFolder(home, stays=not owner.temporary)

    def end() -> None:
        if not own.stays:
            remove_folder(home)

    with ExitStack() as endings:
        endings.callback(end)
        with explained(home):
            _claim(home, owner, endings)
        yield own


@contextmanager
def servers(folder: Path | None = None, broker_url: str | None = None) -> Iterator[Servers]:
    """Start both servers, give their URLs, stop both at the end, whatever ends it.

    Parameters:
        folder: Keeps its rows and its passwords from run to run, and has one owner at a time.
            None means a private temporary folder, gone at the end.
        broker_url: The broker that goes with them, where it is not their Valkey.

    Raises:
        EmbeddedServerError: they could not be started; the text says what to do.
    """
    reap_orphans()
    owner = this_owner(temporary=folder is None)
    home = _temporary_folder() if folder is None else folder.expanduser().resolve()
    with ExitStack() as endings:
        if owner.temporary:
            endings.callback(remove_folder, home)
        with explained(home):
            _claim(home, owner, endings)
            passwords = _passwords(home)
        postgres = EmbeddedPostgres(home / "postgres", passwords["postgres"])
        valkey = EmbeddedValkey(home / "valkey", passwords["valkey"])
        for server in (postgres, valkey):
            # Before its start, so that one cut short leaves nothing either.
            endings.callback(server.stop)
            server.start()
        broker_url = broker_url or valkey.url
        ready = Servers(postgres.url, valkey.url, broker_url, home, (postgres, valkey))
        with explained(home):
            note_owner(
                home,
                replace(
                    owner,
                    database_url=ready.database_url,
                    redis_url=ready.redis_url,
                    broker_url=broker_url,
                ),
            )
        try:
            yield ready
        finally:
            if os.getpid() != owner.process.pid:
                endings.pop_all()  # A forked child that leaves must not stop its parent's servers.


def running(folder: Path) -> Servers | None:
    """The servers of a persistent `folder` whose owner lives and has them ready; else None.

    Raises:
        EmbeddedServerError: the folder is another user's.
    """
    home = folder.expanduser().resolve()
    with explained(home):
        owner = live_owner(home)
    if owner is None or not owner.database_url:
        return None
    return Servers(owner.database_url, owner.redis_url, owner.broker_url, home)


def require_free(folder: Path) -> None:
    """Refuse a persistent folder whose owner lives, as `servers` would.

    Raises:
        EmbeddedServerError: names the process; or the folder is another user's.
    """
    home = folder.expanduser().resolve()
    with explained(home):
        _require_no_owner(home)


def reap_orphans() -> int:
    """Stop the servers and remove the temporary folders of owners that were killed.

    Returns:
        How many folders were removed. One that cannot be is logged and left.
    """
    reaped = 0
    for folder in Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*"):
        try:
            reaped += is_private(folder) and _reap(folder)
        except (EmbeddedServerError, OSError) as error:
            logger.warning("left-over servers in %s could not be stopped: %s", folder, error)
    return reaped


def _reap(folder: Path) -> bool:
    if not _is_orphan(folder):
        return False
    with locked(folder, CLAIM, wait=False) as got:
        if not got or not _is_orphan(folder):
            return False
        _stop_leftovers(folder)
        remove_folder(folder)
    return True


def _stop_leftovers(folder: Path) -> None:
    for data in folder.glob("*/data"):
        for kind in (EmbeddedPostgres, EmbeddedValkey, EmbeddedRabbitMQ):
            kind(data.parent, "").stop_leftover()


def _is_orphan(folder: Path) -> bool:
    owner = read_owner(folder)
    return owner is not None and owner.temporary and live_owner(folder) is None


def _temporary_folder() -> Path:
    return Path(tempfile.gettempdir()).resolve() / f"{PREFIX}{secrets.token_hex(8)}"


def _claim(home: Path, owner: Owner, endings: ExitStack) -> None:
    make_folder(home, server_account())
    with locked(home, CLAIM):
        _require_no_owner(home)
        _stop_leftovers(home)
        endings.enter_context(locked(home, LIFE, wait=False))
        endings.callback(_forget_owner, home)
        note_owner(home, owner)


def _require_no_owner(home: Path) -> None:
    if (other := live_owner(home)) is not None:
        raise EmbeddedServerError(
            f"The servers in {home} belong to process {other.process.pid}, which is running: use "
            "them, stop that process, or choose another folder."
        )


def _forget_owner(home: Path) -> None:
    with suppress(FileNotFoundError):
        (home / NOTE).unlink()


def _passwords(home: Path) -> dict[str, str]:
    file = home / "passwords.json"
    try:
        found = json.loads(file.read_text())
        return {"postgres": str(found["postgres"]), "valkey": str(found["valkey"])}
    except FileNotFoundError:
        fresh = {"postgres": secrets.token_urlsafe(24), "valkey": secrets.token_urlsafe(24)}
        write_private(file, json.dumps(fresh))
        return fresh
    except (ValueError, TypeError, KeyError):
        raise EmbeddedServerError(
            f"The file {file} is damaged: restore it, or choose another folder."
        ) from None
