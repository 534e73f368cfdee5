"""Which servers a command uses: those of the environment, or the private ones of `up`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cos_events.embedded import Servers

URLS = "DATABASE_URL", "REDIS_URL", "BROKER_URL"
"""The variables that name servers."""


def home() -> Path:
    """The data folder of `cos-events up`: `COS_EVENTS_HOME`, or the user's usual place."""
    if given := os.environ.get("COS_EVENTS_HOME"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/cos-events")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "cos-events"


def adopt_running() -> bool:
    """Without a `DATABASE_URL`, use the servers of a running `cos-events up`; whether it does."""
    from cos_events import embedded
    from cos_events.settings import get_settings

    if "database_url" in get_settings().model_fields_set:
        return False
    if servers := embedded.running(home()):
        use(**urls_of(servers))
    return servers is not None


@contextmanager
def available(folder: Path | None, broker_url: str | None) -> Iterator[Servers | None]:
    """The servers of the environment where `DATABASE_URL` is set, otherwise private ones.

    Args:
        folder: where private servers keep their data; None for a folder that is removed at the end.
        broker_url: instead of `BROKER_URL`.

    Yields:
        The private ones; None for those of the environment.
    """
    from cos_events.settings import get_settings

    if broker_url:
        use(BROKER_URL=broker_url)
    settings = get_settings()
    if "database_url" in settings.model_fields_set:
        yield None
        return
    given = settings.broker_url if "broker_url" in settings.model_fields_set else None
    with own(given, folder) as servers:
        yield servers


@contextmanager
def own(broker_url: str | None, folder: Path | None = None) -> Iterator[Servers]:
    """Private servers, whatever the environment says.

    Args:
        broker_url: instead of the private Valkey.
        folder: where they keep their data; None for a folder that is removed at the end.
    """
    from cos_events import embedded

    with embedded.servers(folder, broker_url) as servers:
        use(**urls_of(servers))
        yield servers


def described(servers: Servers | None) -> str:
    """One sentence that says which servers these are; None: those of the environment."""
    if servers is None:
        return "the servers of the environment"
    return f"private PostgreSQL and Valkey in {servers.folder}"


def urls_of(servers: Servers) -> dict[str, str]:
    """The variables that have a process use these servers."""
    urls = servers.database_url, servers.redis_url, servers.broker_url
    return dict(zip(URLS, urls, strict=True))


def use(**urls: str) -> None:
    """Have this process, and those that it starts, use these servers; by their variables."""
    from cos_events.settings import get_settings
    from cos_events.store import engine

    os.environ.update(urls)
    get_settings.cache_clear()
    engine.reset()
