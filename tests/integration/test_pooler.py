"""The bus behind PgBouncer, whose clients take turns on PostgreSQL's connections."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import psycopg2
import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.orm import Session

from cos_events import Envelope, record_event
from cos_events.embedded import own_folder
from cos_events.embedded.process import LOOPBACK, free_port
from cos_events.store.engine import get_autocommit_engine, get_relaxed_engine

if TYPE_CHECKING:
    from conftest import Bus

CONNECTIONS = 3
"""To PostgreSQL; the pooler's clients share them."""


def libpq(url: str) -> str:
    """The URL as psycopg2 takes it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def answers(url: str) -> bool:
    try:
        psycopg2.connect(libpq(url)).close()
    except psycopg2.OperationalError:
        return False
    return True


def configured(folder: Path, database: str, port: int, *, ignores_options: bool) -> Path:
    url, file, users = make_url(database), folder / "pgbouncer.ini", folder / "users"
    options = "ignore_startup_parameters = options\n" if ignores_options else ""
    users.write_text(f'"{url.username}" "{url.password or ""}"\n')
    file.write_text(
        f"[databases]\n{url.database} = host={url.host} port={url.port or 5432}\n"
        f"[pgbouncer]\nlisten_addr = {LOOPBACK}\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = plain\nauth_file = {users}\n"
        f"pool_mode = transaction\ndefault_pool_size = {CONNECTIONS}\n{options}"
    )
    # As root it becomes `nobody`.
    file.chmod(0o644)
    users.chmod(0o644)
    return file


@pytest.fixture(params=["refuses", "ignores"])
def pooler(
    request: pytest.FixtureRequest,
    bus: Bus,
    environment: Callable[..., None],
    eventually: Callable[..., None],
    missing: Callable[[str], NoReturn],
) -> Iterator[str]:
    """The URL of the test's database through a pooler that does so with options."""
    if (program := shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")) is None:
        missing("pgbouncer is not installed")
    direct, port = os.environ["DATABASE_URL"], free_port()
    url = make_url(direct).set(host=LOOPBACK, port=port).render_as_string(hide_password=False)
    account = ["-u", "nobody"] if os.geteuid() == 0 else []
    with own_folder() as home:
        file = configured(home.path, direct, port, ignores_options=request.param == "ignores")
        command = [program, "-q", *account, file]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
            try:
                eventually(lambda: answers(url))
                environment(DATABASE_URL=url)
                yield url
            finally:
                server.terminate()


def test_what_the_bus_commits_without_waiting_makes_no_other_client_do_so(
    bus: Bus, pooler: str
) -> None:
    def with_session(message: Envelope, session: Session) -> None:
        record_event(session, "followed", {}, module=bus.module)

    names = [bus.declare(with_session), bus.declare(lambda message: None)]
    raws = [bus.record(n=n) for n in range(3)]
    for name in names:
        bus.run(name, *raws)
    assert {bus.state(name, raw) for name in names for raw in raws} == {"delivered"}
    with ExitStack() as open_at_once:
        for _ in range(CONNECTIONS):
            client = psycopg2.connect(libpq(pooler))
            open_at_once.callback(client.close)
            cursor = client.cursor()
            cursor.execute("SHOW synchronous_commit")
            assert cursor.fetchone() == ("on",)


@pytest.mark.parametrize("place", ["DATABASE_URL", "PGOPTIONS"])
def test_options_from_elsewhere_hold_for_every_connection_of_the_bus(
    database: Engine, environment: Callable[..., None], place: str
) -> None:
    options = "-c statement_timeout=7s"
    url = make_url(os.environ["DATABASE_URL"]).update_query_dict({"options": options})
    values = {"DATABASE_URL": url.render_as_string(hide_password=False), "PGOPTIONS": options}
    environment(**{place: values[place]})
    for engine in (get_relaxed_engine(), get_autocommit_engine()):
        with engine.connect() as connection:
            shown = [
                connection.scalar(text(f"SHOW {name}"))
                for name in ("statement_timeout", "synchronous_commit")
            ]
        assert shown == ["7s", "off"]
