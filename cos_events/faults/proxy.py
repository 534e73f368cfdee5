"""A TCP proxy that does to connections what networks do: it delays, loses, cuts and resets them."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Literal

from cos_events.embedded.process import LOOPBACK

Lost = Literal["nothing", "answers", "everything"]
"""What is swallowed: what the server says, or what both sides say."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: closing sends a reset."""


class Proxy:
    """Carries connections from a port of its own on loopback to a server's, in a thread.

    A fault lasts until `heal`.
    """

    def __init__(self) -> None:
        self.port = 0
        self.target = 0
        self.lost: Lost = "nothing"
        self.delay = 0.0
        self.refuses = False
        self.pairs: set[_Pair] = set()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()

    def start(self, target: int) -> None:
        """Listen on `port`, a free one, and carry to the port `target`."""
        self.target = target
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="cos-events-proxy", daemon=True
        )
        self._thread.start()
        self._ready.wait(10.0)

    def stop(self) -> None:
        """End every connection, and the thread; harmless if it does not run."""
        if self._thread is not None and self._thread.is_alive():
            self._call(self._stopping.set)
            self._thread.join(5.0)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        listener = await self._loop.create_server(lambda: _Pair(self).client, LOOPBACK, 0)
        self.port = listener.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        listener.close()
        self._reset()

    def reset(self) -> None:
        """End every connection there is, by a TCP reset."""
        self._call(self._reset)

    def cut(self) -> None:
        """Reset every connection there is, and each new one."""
        self._call(self._reset, refuses=True)

    def lose(self, lost: Lost) -> None:
        """Swallow bytes without a word to anybody."""
        self._call(lost=lost)

    def slow(self, seconds: float) -> None:
        """Hold up everything that is said by so much, each way."""
        self._call(delay=seconds)

    def heal(self) -> None:
        """Carry everything at once again; connections that have lost bytes are reset."""
        self._call(self._reset_torn, refuses=False, lost="nothing", delay=0.0)

    def _call(self, action: Callable[[], None] = lambda: None, **state: Any) -> None:
        async def call() -> None:
            for name, value in state.items():
                setattr(self, name, value)
            action()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(10.0)

    def _reset(self) -> None:
        for pair in list(self.pairs):
            pair.reset()

    def _reset_torn(self) -> None:
        for pair in [each for each in self.pairs if each.torn]:
            pair.reset()


class _Pair:
    """A client's connection and its twin to the server."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.torn = False
        self._over = False
        self.client = _End(self)
        self.server = _End(self)
        self._connecting: asyncio.Task[None] | None = None

    def opened(self, end: _End) -> None:
        if self._over:
            end.reset()
        elif end is self.client:
            self.proxy.pairs.add(self)
            end.pause_reading()
            self._connecting = asyncio.ensure_future(self._connect())
        else:
            self.client.resume_reading()

    async def _connect(self) -> None:
        if self.proxy.refuses:
            self.reset()
            return
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self.server, LOOPBACK, self.proxy.target
            )
        except OSError:
            self.reset()

    def carry(self, end: _End, data: bytes) -> None:
        if not self._is_lost(end):
            self.twin(end).say(data, self.proxy.delay)

    def closed(self, end: _End, error: Exception | None) -> None:
        if self._is_lost(end):
            return
        self._over = True
        self.proxy.pairs.discard(self)
        if error is None:
            self.twin(end).say(None, self.proxy.delay)
        else:
            self.reset()

    def _is_lost(self, end: _End) -> bool:
        """Whether what this end says now goes lost; its hanging up too."""
        lost = self.proxy.lost
        if lost == "everything" or (lost == "answers" and end is self.server):
            self.torn = True
            return True
        return False

    def reset(self) -> None:
        self._over = True
        self.proxy.pairs.discard(self)
        self.client.reset()
        self.server.reset()

    def twin(self, end: _End) -> _End:
        return self.server if end is self.client else self.client


class _End(asyncio.Protocol):
    """One connection of a pair."""

    def __init__(self, pair: _Pair) -> None:
        self._pair = pair
        self._transport: asyncio.Transport | None = None
        self._free_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # a stream's, of asyncio
        self._pair.opened(self)

    def data_received(self, data: bytes) -> None:
        self._pair.carry(self, data)

    def connection_lost(self, error: Exception | None) -> None:
        self._pair.closed(self, error)

    def pause_writing(self) -> None:
        self._pair.twin(self).pause_reading()

    def resume_writing(self) -> None:
        self._pair.twin(self).resume_reading()

    def say(self, data: bytes | None, delay: float) -> None:
        """Write data, or hang up, after the delay; never before what came earlier."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._free_at = max(now + delay, self._free_at)
        if self._free_at > now:
            loop.call_at(self._free_at, self._say, data)
        else:
            self._say(data)

    def _say(self, data: bytes | None) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if data is None:
            self._transport.close()
        else:
            self._transport.write(data)

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def reset(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
