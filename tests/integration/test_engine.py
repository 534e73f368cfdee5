"""How long a connection to PostgreSQL is waited for, and what is said then."""

from __future__ import annotations

import os
import socket
import sys

import pytest
from sqlalchemy import Engine

from cos_events.errors import DatabaseAway
from cos_events.store import engine as store_engine
from cos_events.store.engine import explained, get_engine, make_engine


@pytest.mark.skipif(sys.platform != "linux", reason="asks for options of Linux")
@pytest.mark.parametrize(
    ("said", "idle", "patience"),
    [({}, 30, 30_000), ({"keepalives_idle": "7", "tcp_user_timeout": "9000"}, 7, 9_000)],
    ids=["by default", "as the URL says"],
)
def test_a_host_that_is_gone_is_noticed(
    database: Engine, said: dict[str, str], idle: int, patience: int
) -> None:
    url = database.url.update_query_dict(said).render_as_string(hide_password=False)
    engine = make_engine(url)
    with engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert driver is not None
        with socket.socket(fileno=os.dup(driver.fileno())) as wire:
            assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle
            assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == patience
    engine.dispose()


def test_a_pool_without_a_free_connection_is_a_sentence(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    none_to_spare = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.2}
    monkeypatch.setattr(store_engine, "make_engine", lambda url: make_engine(url, **none_to_spare))
    store_engine.reset()
    refused = pytest.raises(DatabaseAway, match="^no connection to PostgreSQL at postgresql")
    with get_engine().connect(), refused, explained():
        get_engine().connect()
    store_engine.reset()
