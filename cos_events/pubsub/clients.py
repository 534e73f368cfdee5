"""Pooled clients of `REDIS_URL`: one per process for its threads, one for each event loop."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, ClassVar

from redis import BlockingConnectionPool, Redis
from redis.asyncio import BlockingConnectionPool as AsyncPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeout
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from cos_events.errors import ConfigurationError
from cos_events.process import PerProcess
from cos_events.settings import get_settings, outline


class _Clients:
    """The clients of one process.

    Attributes:
        inherited: keeps a forked child from collecting its parent's clients: redis-py and asyncio
            would then clean up sockets, locks and an epoll that the parent still uses.
    """

    inherited: ClassVar[list[_Clients]] = []

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sync: Redis | None = None
        self.by_loop: dict[asyncio.AbstractEventLoop, tuple[AsyncRedis, AsyncGenerator[None]]] = {}
        self.inherited.append(self)


_clients = PerProcess(_Clients)


def get_redis_client() -> AsyncRedis:
    """The client of the running event loop; its pool holds at most `REDIS_MAX_CONNECTIONS`.

    At that limit a command waits for a connection, up to `COS_EVENTS_WIRE_TIMEOUT` seconds, and
    then raises `redis.ConnectionError`. `asyncio.run` closes the client when it ends; other ways
    to run a loop call `close_redis_client` or `loop.shutdown_asyncgens`.

    Raises:
        RuntimeError: no event loop is running.
        ConfigurationError: `REDIS_URL` cannot be read.
    """
    loop, clients = asyncio.get_running_loop(), _clients.get().by_loop
    if loop not in clients:
        for ended in [each for each in list(clients) if each.is_closed()]:
            clients.pop(ended, None)
        client = make_async_client()
        # A loop has no exit hook, but it closes the asynchronous generators started in it.
        closer = _closed_with_its_loop(loop, client)
        with suppress(StopIteration):
            closer.__anext__().send(None)
        clients[loop] = client, closer
    return clients[loop][0]


async def close_redis_client() -> None:
    """Close the running loop's client, if it has one; the next use makes another."""
    if held := _clients.get().by_loop.get(asyncio.get_running_loop()):
        await held[1].aclose()


async def _closed_with_its_loop(
    loop: asyncio.AbstractEventLoop, client: AsyncRedis
) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        _clients.get().by_loop.pop(loop, None)
        with suppress(RedisError, OSError):
            await client.aclose()


def get_redis_client_sync() -> Redis:
    """As `get_redis_client`, for all threads of this process; closed when the process ends.

    Raises:
        ConfigurationError: `REDIS_URL` cannot be read.
    """
    clients = _clients.get()
    with clients.lock:
        if clients.sync is None:
            clients.sync = make_client()
        return clients.sync


def close_redis_client_sync() -> None:
    """Close the threads' client, if there is one; the next use makes another."""
    clients = _clients.get()
    with clients.lock:
        client, clients.sync = clients.sync, None
    if client is not None:
        client.close()


atexit.register(close_redis_client_sync)


def make_client(*, patient: bool = True, **changes: Any) -> Redis:
    """A client of `REDIS_URL`, as the settings say.

    Args:
        patient: whether a command is sent once more when its connection turns out to be dead, or
            after a timeout (`REDIS_RETRY_ON_TIMEOUT`).
        changes: options of redis-py that differ from the settings.
    """
    retry = Retry(NoBackoff(), int(patient), _worth_a_retry())
    pool: Any = _make_pool(BlockingConnectionPool, retry=retry, **changes)
    return Redis.from_pool(pool)


def make_async_client(*, patient: bool = True, **changes: Any) -> AsyncRedis:
    """As `make_client`, for one event loop."""
    retry = AsyncRetry(NoBackoff(), int(patient), _worth_a_retry())
    pool: Any = _make_pool(AsyncPool, retry=retry, **changes)
    return AsyncRedis.from_pool(pool)


def _worth_a_retry() -> tuple[type[RedisError], ...]:
    if get_settings().redis_retry_on_timeout:
        return RedisConnectionError, RedisTimeout
    return (RedisConnectionError,)


def _make_pool(kind: Any, **changes: Any) -> Any:
    settings = get_settings()
    options: dict[str, Any] = {
        "max_connections": settings.redis_max_connections,
        "timeout": settings.wire_timeout,
        "socket_timeout": settings.wire_timeout,
        "socket_connect_timeout": settings.redis_socket_connect_timeout,
        "socket_keepalive": settings.redis_socket_keepalive,
        "health_check_interval": settings.redis_health_check_interval,
        "decode_responses": settings.redis_decode_responses,
        # With them redis-py treats a pooled connection that the server has closed as a good one.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    try:
        pool = kind.from_url(settings.redis_url, **options | changes)
        # It takes any option; a connection, which it would make first when it is needed, does not.
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError) as error:
        why = str(error).replace("AbstractConnection.__init__()", "redis-py")
        raise ConfigurationError(f"REDIS_URL={outline(settings.redis_url)!r}: {why}") from None
    return pool
