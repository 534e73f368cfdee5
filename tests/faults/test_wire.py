"""What a fault does to a server, seen by one of its clients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import redis

from cos_events.embedded import EmbeddedValkey
from cos_events.faults.wire import Wire

SOON = 0.3
"""Seconds that a client waits for an answer."""


@pytest.fixture
def wire(valkey: EmbeddedValkey) -> Iterator[Wire]:
    """A private Valkey behind a proxy."""
    valkey.stop()
    made = Wire(valkey)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def client(wire: Wire) -> Iterator[redis.Redis]:
    """Connects through the proxy and tries everything once."""
    with redis.Redis.from_url(wire.url, socket_timeout=SOON, retry=None) as made:
        made.set("kept", "1")
        yield made


def test_a_frozen_server_answers_nothing_and_then_again(wire: Wire, client: redis.Redis) -> None:
    with wire.frozen(), pytest.raises(redis.TimeoutError):
        client.ping()
    assert client.get("kept") == b"1"


@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "killed"])
def test_a_server_that_was_down_comes_back_empty(
    wire: Wire, client: redis.Redis, crash: bool
) -> None:
    with wire.down(crash=crash), pytest.raises(redis.ConnectionError):
        client.ping()
    assert client.get("kept") is None


def test_a_cut_refuses_old_and_new_connections(wire: Wire, client: redis.Redis) -> None:
    with wire.cut():
        for _ in range(2):
            with pytest.raises(redis.ConnectionError):
                client.ping()
    assert client.get("kept") == b"1"


def test_a_reset_costs_one_connection(wire: Wire, client: redis.Redis) -> None:
    before = client.client_id()
    wire.reset()
    with suppress(redis.ConnectionError):
        client.ping()
    assert client.client_id() != before
    assert client.get("kept") == b"1"


def test_lost_answers_leave_the_work_done(wire: Wire, client: redis.Redis) -> None:
    with wire.dropping("answers"), pytest.raises(redis.TimeoutError):
        client.set("kept", "2")
    assert client.get("kept") == b"2"


def test_when_everything_is_lost_no_work_is_done(wire: Wire, client: redis.Redis) -> None:
    with wire.dropping("everything"), pytest.raises(redis.TimeoutError):
        client.set("kept", "2")
    assert client.get("kept") == b"1"


def test_a_delay_delays_each_way(wire: Wire, client: redis.Redis) -> None:
    with wire.delayed(0.1):
        began = time.monotonic()
        client.ping()
        assert time.monotonic() - began >= 0.2


def test_an_emptied_server_has_forgotten_everything(wire: Wire, client: redis.Redis) -> None:
    wire.empty()
    assert client.get("kept") is None


@pytest.mark.parametrize("action", ["delete_queue", "purge_queue"])
def test_a_queue_on_redis_is_gone(wire: Wire, client: redis.Redis, action: str) -> None:
    client.lpush("queue", "copy")
    getattr(wire, action)("queue")
    assert not client.exists("queue")
    assert client.exists("kept")
