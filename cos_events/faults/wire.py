"""A private Redis or RabbitMQ behind a proxy, and what can be done to it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import redis
from kombu import Connection

from cos_events.embedded import EmbeddedRabbitMQ
from cos_events.embedded.process import LOOPBACK, frozen
from cos_events.embedded.server import Server
from cos_events.faults.proxy import Lost, Proxy


class Wire:
    """A server that everybody reaches through a proxy.

    What it does in a `with` lasts while the body runs; one at a time.

    Parameters:
        server: not yet started.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._proxy = Proxy()

    def start(self) -> None:
        """Start the server, and the proxy in front of it."""
        self.server.start()
        self._proxy.start(self.server.port)

    def stop(self) -> None:
        """Stop both; harmless if they do not run."""
        self._proxy.stop()
        self.server.stop()

    @property
    def url(self) -> str:
        """Where clients connect: the proxy."""
        parts = urlsplit(self.server.url)
        login = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{login}@{LOOPBACK}:{self._proxy.port}").geturl()

    def frozen(self) -> AbstractContextManager[None]:
        """The server keeps its connections, accepts new ones and answers nothing."""
        return frozen(self.server.pid)

    @contextmanager
    def down(self, *, crash: bool = False) -> Iterator[None]:
        """The server does not run; RabbitMQ comes back with what was durable, Redis empty.

        Args:
            crash: it ends by SIGKILL.
        """
        if crash and (pid := self.server.pid):
            os.kill(pid, signal.SIGKILL)
        self.server.stop()
        try:
            yield
        finally:
            self.server.start()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Every connection is reset, and each new one."""
        self._proxy.cut()
        with self._healing():
            yield

    @contextmanager
    def dropping(self, lost: Lost) -> Iterator[None]:
        """What is said is lost; afterwards the connections that it was lost on are reset."""
        self._proxy.lose(lost)
        with self._healing():
            yield

    @contextmanager
    def delayed(self, seconds: float) -> Iterator[None]:
        """What is said arrives so much later, each way."""
        self._proxy.slow(seconds)
        with self._healing():
            yield

    def reset(self) -> None:
        """Every connection there is, is reset."""
        self._proxy.reset()

    def empty(self) -> None:
        """The server forgets all that it holds; RabbitMQ is away for a moment."""
        if isinstance(self.server, EmbeddedRabbitMQ):
            with self.down():
                self.server.empty()
        else:
            with self._redis() as client:
                client.flushall()

    def delete_queue(self, name: str) -> None:
        """Delete a queue with what is in it."""
        if isinstance(self.server, EmbeddedRabbitMQ):
            self._on_channel("queue_delete", name)
        else:
            with self._redis() as client:
                client.delete(name)

    def purge_queue(self, name: str) -> None:
        """Delete what waits in a queue; on Redis, where that is all there is of it, the queue."""
        if isinstance(self.server, EmbeddedRabbitMQ):
            self._on_channel("queue_purge", name)
        else:
            self.delete_queue(name)

    def delete_exchange(self, name: str) -> None:
        """Delete RabbitMQ's exchange, and with it every binding to it."""
        self._on_channel("exchange_delete", name)

    @contextmanager
    def _healing(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._proxy.heal()

    def _redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.server.url, socket_timeout=5)

    def _on_channel(self, action: str, name: str) -> None:
        with (
            Connection(self.server.url, connect_timeout=5) as connection,
            connection.channel() as channel,
        ):
            act: Any = getattr(channel, action)
            # A queue that is gone already is empty too.
            with suppress(*connection.channel_errors):
                act(name)
