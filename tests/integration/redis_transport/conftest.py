"""Connections by Kombu's own Redis transport, and by ours: each test here runs with both.

The behaviours are those of Kombu's own integration tests, which run with a prefix of all keys too.
What ours alone does stands in `test_redis_transport.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from inbox import Connect
from kombu import Connection
from redis import Redis

import cos_events.redis_transport  # noqa: F401 - makes the scheme known
from cos_events.embedded import Servers


@pytest.fixture(params=["redis", "redis-batch"])
def scheme(request: pytest.FixtureRequest) -> str:
    """Kombu's own transport, and ours."""
    return str(request.param)


@pytest.fixture(params=["", "prefix."], ids=["plain", "prefixed"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def redis(servers: Servers) -> Iterator[Redis]:
    """An empty database of the tests' Valkey."""
    with Redis.from_url(f"{servers.redis_url.rpartition('/')[0]}/6") as client:
        client.flushdb()
        yield client
        client.flushdb()


@pytest.fixture
def connect(servers: Servers, redis: Redis, scheme: str, prefix: str) -> Iterator[Connect]:
    """Connections to that database, by the transport under test."""
    opened: list[Connection] = []
    address = servers.redis_url.rpartition("/")[0].partition("://")[2]

    def make(**options: Any) -> Connection:
        options = {"global_keyprefix": prefix, **options}
        opened.append(Connection(f"{scheme}://{address}/6", transport_options=options))
        return opened[-1]

    yield make
    for each in opened:
        each.release()


@pytest.fixture
def connection(connect: Connect) -> Connection:
    return connect()
