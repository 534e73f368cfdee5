"""A place for folders, owners in processes of their own, and what must be gone afterwards."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg2
import pytest

ROOT = Path(__file__).parents[3]


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition, at most `seconds`, and fail when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def servers_in(place: Path) -> list[psutil.Process]:
    """The running servers that have a folder below `place`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            server = words and Path(words[0]).name in ("postgres", "valkey-server", "initdb")
            if server and any(str(place) in word for word in words):
                found.append(process)
    return found


def connect(url: str, password: str | None = None) -> "psycopg2.extensions.connection":
    parts = urlsplit(url)
    return psycopg2.connect(
        host=parts.hostname,
        port=parts.port,
        user=parts.username,
        password=password or parts.password,
        dbname=parts.path[1:],
    )


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    session = connect(url)
    try:
        with session, session.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        session.close()


def sleeper() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


@contextmanager
def impostor(answer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Another user's server: its port, and what it has been sent, to which it always says `answer`.

    Before it answers it has noted what it was sent.
    """
    heard: list[bytes] = []

    class Talk(BaseRequestHandler):
        def handle(self) -> None:
            while sent := self.request.recv(65_536):
                heard.append(sent)
                self.request.sendall(answer)

    with ThreadingTCPServer(("127.0.0.1", 0), Talk) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield server.server_address[1], heard
        finally:
            server.shutdown()


class OwnerProcess:
    """`with servers(...)` in a process of its own, until it is told or made to end.

    Or `with own_folder()`, with a server in it.
    """

    # It changes its user itself, when all is loaded: another one may not read this Python.
    SERVERS = """
import os, sys, encodings.idna, redis
from pathlib import Path
redis.Redis()
from cos_events.embedded import servers
user, *folder = sys.argv[1:]
if int(user):
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
with servers(Path(folder[0]) if folder else None) as here:
    print(here.folder, flush=True)
    sys.stdin.read()
"""
    OWN_FOLDER = """
import sys
from cos_events.embedded import EmbeddedValkey, own_folder
with own_folder() as here:
    server = EmbeddedValkey(here.path / "any", "secret")
    server.start()
    print(here.path, flush=True)
    sys.stdin.read()
    server.stop()
"""

    def __init__(self, *arguments: str, user: int = 0, code: str = SERVERS) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(user), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def folder(self) -> Path:
        """The folder of its servers, once they answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.process.stderr and self.process.stderr.read()
        return Path(line)

    def end(self, number: signal.Signals | None = None) -> int:
        """End it by a signal, or by the end of its input; returns its exit code."""
        if number is not None:
            self.process.send_signal(number)
        self.process.communicate(timeout=300)
        return self.process.returncode


StartOwner = Callable[..., OwnerProcess]


@pytest.fixture
def place(place: Path) -> Iterator[Path]:
    """With no server in it at the end."""
    yield place
    assert servers_in(place) == []


@pytest.fixture
def owner(place: Path) -> Iterator[StartOwner]:
    """Starts owners; those that still run at the end of the test are ended."""
    started: list[OwnerProcess] = []

    def start(*arguments: str, **options: Any) -> OwnerProcess:
        started.append(OwnerProcess(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.end()
