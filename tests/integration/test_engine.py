"""How long a connection to PostgreSQL waits for a server that does not answer."""

from __future__ import annotations

import os
import socket
import sys

import pytest
from sqlalchemy import Engine

from cos_events.store.engine import make_engine


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
