"""Which servers a command uses: those of the environment, or the private ones of `up`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cos_events.embedded import Servers


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
        use(database_url=servers.database_url, redis_url=servers.redis_url)
    return servers is not None


@contextmanager
def available(folder: Path | None, broker_url: str | None) -> Iterator[str]:
    """The servers of the environment where `DATABASE_URL` is set, otherwise private ones.

    Args:
        folder: where private servers keep their data; None for a folder that is removed at the end.
        broker_url: instead of `BROKER_URL`.

    Yields:
        One sentence that says which they are.
    """
    from cos_events import embedded
    from cos_events.settings import get_settings

    if broker_url:
        use(broker_url=broker_url)
    if "database_url" in get_settings().model_fields_set:
        yield "the servers of the environment"
        return
    with embedded.servers(folder) as servers:
        use(database_url=servers.database_url, redis_url=servers.redis_url)
        yield private(servers)


@contextmanager
def own(broker_url: str | None) -> Iterator[str]:
    """Private servers, whatever the environment says; nothing of them stays.

    Args:
        broker_url: instead of the private Valkey.

    Yields:
        One sentence that says which they are.
    """
    from cos_events import embedded

    with embedded.servers(None) as servers:
        use(
            database_url=servers.database_url,
            redis_url=servers.redis_url,
            broker_url=broker_url or servers.redis_url,
        )
        yield private(servers)


def private(servers: Servers) -> str:
    """One sentence that says which servers these are."""
    return f"private PostgreSQL and Valkey in {servers.folder}"


def use(**urls: str) -> None:
    """Have this process, and those that it starts, use these servers."""
    from cos_events.settings import get_settings
    from cos_events.store import engine

    os.environ.update({name.upper(): url for name, url in urls.items()})
    get_settings.cache_clear()
    engine.reset()
