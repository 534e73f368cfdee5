"""Both servers together: what they promise while they run, and what is left when they end."""

import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg2
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cos_events.embedded import EmbeddedPostgres, EmbeddedValkey, running, servers
from cos_events.embedded import process as processes
from cos_events.errors import EmbeddedServerError

from .conftest import (
    ROOT,
    StartOwner,
    connect,
    eventually,
    execute,
    servers_in,
    sleeper,
)


def test_both_answer_with_the_promised_settings(place: Path) -> None:
    with servers() as here:
        assert execute(here.database_url, "SELECT current_user, current_database()") == [
            ("cos", "cos_events")
        ]
        for setting, value in (
            ("fsync", "on"),
            ("server_encoding", "UTF8"),
            ("max_prepared_transactions", "10"),
            ("shared_buffers", "64MB"),
            ("unix_socket_directories", ""),
        ):
            assert execute(here.database_url, f"SHOW {setting}") == [(value,)]
        with redis.Redis.from_url(here.redis_url, decode_responses=True) as client:
            assert client.ping()
            assert client.config_get("save") == {"save": ""}
            assert client.config_get("appendonly") == {"appendonly": "no"}
            assert client.config_get("protected-mode") == {"protected-mode": "yes"}


def test_neither_is_reachable_without_its_password(place: Path) -> None:
    with servers() as here:
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            connect(here.database_url, password="guessed")
        port = urlsplit(here.redis_url).port
        assert port is not None
        for password in (None, "guessed"):
            once = Retry(NoBackoff(), 0)
            client = redis.Redis(port=port, password=password, retry=once)
            with client, pytest.raises(redis.AuthenticationError):
                client.ping()


def test_both_listen_on_loopback_only(place: Path) -> None:
    with servers() as here:
        ports = {urlsplit(url).port for url in (here.database_url, here.redis_url)}
        listening = [
            (each.laddr.ip, each.laddr.port)
            for each in psutil.net_connections(kind="tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port in ports
        ]
    assert sorted(listening) == sorted(("127.0.0.1", port) for port in ports)


def test_the_passwords_are_in_no_process_list_and_no_repr(place: Path) -> None:
    with servers() as here:
        passwords = [urlsplit(url).password for url in (here.database_url, here.redis_url)]
        shown = subprocess.run(["ps", "-axww"], capture_output=True, text=True, check=True).stdout
        assert str(here.folder) in shown
        for password in passwords:
            assert password is not None
            assert password not in shown
            assert password not in repr(here)


def test_the_end_leaves_no_process_and_no_folder(place: Path) -> None:
    with servers() as here:
        assert stat.S_IMODE(here.folder.stat().st_mode) & 0o067 == 0
        assert len(servers_in(place)) >= 2
    assert servers_in(place) == []
    assert list(place.iterdir()) == []


def test_an_interrupt_in_the_body_leaves_nothing(place: Path) -> None:
    with pytest.raises(KeyboardInterrupt), servers():
        raise KeyboardInterrupt
    assert servers_in(place) == []
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("sign", ["initdb", "postmaster.pid", "valkey.pid"])
def test_an_interrupt_during_the_start_leaves_nothing(
    place: Path, owner: StartOwner, sign: str
) -> None:
    starting = owner()
    # What is renamed under way, as initdb's folder is, ends no walk.
    eventually(lambda: any(sign in str(folders + files) for _, folders, files in os.walk(place)))
    assert starting.end(signal.SIGINT) in (-signal.SIGINT, 130)
    eventually(lambda: servers_in(place) == [])
    assert list(place.iterdir()) == []


def test_a_forked_child_that_leaves_does_not_stop_its_parents_servers(place: Path) -> None:
    code = """
import os
from cos_events.embedded import servers
import redis
with servers() as here:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        redis.Redis.from_url(here.redis_url).ping()
        print("answers")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert done.stdout == "answers\n"


def test_a_persistent_folder_keeps_rows_and_passwords(place: Path) -> None:
    folder = place / "kept"
    with servers(folder) as first:
        execute(first.database_url, "CREATE TABLE note AS SELECT 'kept' AS text")
    with servers(folder) as second:
        assert execute(second.database_url, "SELECT text FROM note") == [("kept",)]
    for before, after in (
        (first.database_url, second.database_url),
        (first.redis_url, second.redis_url),
    ):
        assert urlsplit(before).password == urlsplit(after).password
    assert stat.S_IMODE((folder / "passwords.json").stat().st_mode) == 0o600


def test_a_persistent_folder_of_a_killed_owner_starts_anew_with_its_rows(
    place: Path, owner: StartOwner
) -> None:
    folder = place / "kept"
    killed = owner(str(folder))
    killed.folder()
    found = running(folder)
    assert found is not None
    execute(found.database_url, "CREATE TABLE note AS SELECT 'kept' AS text")
    killed.end(signal.SIGKILL)
    left = servers_in(folder)
    assert running(folder) is None
    with servers(folder) as here:
        assert not {process.pid for process in left} & {one.pid for one in servers_in(folder)}
        assert execute(here.database_url, "SELECT text FROM note") == [("kept",)]


def test_a_second_owner_is_refused_by_the_number_of_the_first(
    place: Path, owner: StartOwner
) -> None:
    folder = place / "kept"
    first = owner(str(folder))
    first.folder()
    refused = pytest.raises(EmbeddedServerError, match=f"belong to process {first.process.pid}")
    with refused, servers(folder):
        pass
    assert running(folder) is not None


def test_running_finds_the_servers_of_a_live_owner_only(place: Path) -> None:
    folder = place / "kept"
    assert running(folder) is None
    with servers(folder) as here:
        assert running(folder) == here
    assert running(folder) is None


def test_a_process_is_also_told_apart_without_proc(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PROC", None)
    me = processes.identify(os.getpid())
    assert me is not None
    assert me.is_alive()
    assert not replace(me, started="Thu Jan  1 00:00:00 1970").is_alive()
    with sleeper() as other:
        program, arguments = processes.command_line(other.pid)
        assert program.startswith("python")
        assert arguments == "-c input()"
        other.kill()
    assert processes.identify(other.pid) is None


def test_postgres_keeps_data_and_port_when_restarted(place: Path) -> None:
    server = EmbeddedPostgres(place / "postgres", "a'b c/%@", settings={"work_mem": "5MB"})
    try:
        server.start()
        url, pid = server.url, server.pid
        parts = urlsplit(url)
        assert parts.password == "a%27b%20c%2F%25%40"

        def ask(statement: str) -> object:
            with (
                psycopg2.connect(
                    host=parts.hostname,
                    port=parts.port,
                    user="cos",
                    password="a'b c/%@",
                    dbname="cos_events",
                ) as session,
                session.cursor() as cursor,
            ):
                cursor.execute(statement)
                return cursor.fetchone() if cursor.description else None

        assert ask("SHOW work_mem") == ("5MB",)
        ask("CREATE TABLE note AS SELECT 'kept' AS text")
        server.stop()
        assert server.pid is None
        server.start()
        assert server.url == url
        assert server.pid != pid
        assert ask("SELECT text FROM note") == ("kept",)
    finally:
        server.stop()


def test_a_killed_postgres_starts_again_with_its_data(place: Path) -> None:
    server = EmbeddedPostgres(place / "postgres", "secret")
    try:
        server.start()
        execute(server.url, "CREATE TABLE note AS SELECT 'kept' AS text")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: server.pid is None)
        server.start()
        assert execute(server.url, "SELECT text FROM note") == [("kept",)]
    finally:
        server.stop()


def test_valkey_comes_back_empty_on_the_same_port(place: Path) -> None:
    settings = {"maxmemory": "10mb", "loglevel": "warning"}
    server = EmbeddedValkey(place / "valkey", 'a"b \\c', settings=settings)
    try:
        server.start()
        url = server.url
        with redis.Redis.from_url(url, decode_responses=True) as client:
            client.set("key", "value")
            assert client.config_get("maxmemory") == {"maxmemory": "10485760"}
        server.start()
        server.stop()
        server.stop()
        server.start()
        assert server.url == url
        with redis.Redis.from_url(url) as client:
            assert client.dbsize() == 0
    finally:
        server.stop()


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
def test_a_frozen_server_still_stops(
    place: Path, kind: type[EmbeddedPostgres] | type[EmbeddedValkey]
) -> None:
    server = kind(place / "server", "secret")
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    server.stop()
    assert server.pid is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as another user")
def test_it_works_as_a_user_that_is_not_root(place: Path, owner: StartOwner) -> None:
    import pwd

    nobody = pwd.getpwnam("nobody").pw_uid
    os.chown(place, nobody, -1)
    unprivileged = owner(user=nobody)
    folder = unprivileged.folder()
    assert {process.uids().real for process in servers_in(folder)} == {nobody}
    assert unprivileged.end() == 0
    assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone changes to another user")
def test_as_root_no_server_runs_as_root(place: Path) -> None:
    with servers():
        assert 0 not in {process.uids().real for process in servers_in(place)}
