"""A publisher whose server is away, or frozen."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

import pytest

from cos_events import publish_message
from cos_events.embedded import EmbeddedValkey
from cos_events.pubsub import redis_breaker

Publish = Callable[..., bool]

WIRE_TIMEOUT = 0.5

NAME = "mem0.recorded.cc"


def test_a_server_that_is_away_is_false_with_one_line_for_the_outage_and_one_after_it(
    publishing: Publish,
    own: EmbeddedValkey,
    caplog: pytest.LogCaptureFixture,
    eventually: Callable[..., None],
) -> None:
    assert publishing(NAME, {})
    own.stop()
    for _ in range(2):
        assert [publishing(NAME, {}) for _ in range(50)] == [False] * 50
        eventually(lambda: redis_breaker().state == "half_open")
    own.start()
    eventually(lambda: publishing(NAME, {}))
    assert [publishing(NAME, {}) for _ in range(10)] == [True] * 10
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith("the live feed's Redis is down: ")
    assert caplog.messages[1] == "the live feed's Redis is back"
    assert redis_breaker().opened == 1


def test_a_restart_costs_no_message_although_the_pool_is_full_of_dead_connections(
    own: EmbeddedValkey,
) -> None:
    async def run() -> None:
        assert all(await asyncio.gather(*(publish_message(NAME, {}) for _ in range(50))))
        own.stop()
        own.start()
        assert all(await asyncio.gather(*(publish_message(NAME, {}) for _ in range(50))))

    asyncio.run(run())


def test_a_frozen_server_is_false_within_two_timeouts_and_then_at_once(
    frozen: Callable[[EmbeddedValkey], AbstractContextManager[None]],
    publishing: Publish,
    own: EmbeddedValkey,
    eventually: Callable[..., None],
) -> None:
    assert publishing(NAME, {})
    with frozen(own):
        started = time.monotonic()
        assert publishing(NAME, {}) is False
        assert time.monotonic() - started < 2 * WIRE_TIMEOUT + 1.0, "each try may take the timeout"
        redis_breaker()._reset_after = 60.0
        started = time.monotonic()
        assert [publishing(NAME, {}) for _ in range(100)] == [False] * 100
        assert time.monotonic() - started < WIRE_TIMEOUT
        redis_breaker()._reset_after = 0.2
    eventually(lambda: publishing(NAME, {}))


def test_with_retry_on_timeout_off_a_frozen_server_gets_one_try(
    frozen: Callable[[EmbeddedValkey], AbstractContextManager[None]],
    publishing: Publish,
    own: EmbeddedValkey,
    environment: Callable[..., None],
) -> None:
    environment(REDIS_RETRY_ON_TIMEOUT="false")
    assert publishing(NAME, {})
    with frozen(own):
        started = time.monotonic()
        assert publishing(NAME, {}) is False
        assert time.monotonic() - started < 2 * WIRE_TIMEOUT


def test_while_the_breaker_is_open_no_connection_is_made(
    publishing: Publish, environment: Callable[..., None], eventually: Callable[..., None]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address, accepted = listener.getsockname(), []

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    client, (_, port) = listener.accept()
                    client.close()
                    accepted.append(port)

        def connections() -> int:
            # Connections are accepted in order: when this one was, all before it were too.
            with socket.create_connection(address) as last:
                eventually(lambda: last.getsockname()[1] in accepted)
            return len(accepted)

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        environment(REDIS_URL=f"redis://127.0.0.1:{address[1]}/0")
        assert publishing(NAME, {}) is False
        redis_breaker()._reset_after = 3600.0
        before = connections()
        assert before > 1, "it was tried"
        assert not any(publishing(NAME, {}) for _ in range(100))
        assert connections() == before + 1
        assert redis_breaker().state == "open"
        redis_breaker()._reset_after = 0.0
        assert publishing(NAME, {}) is False
        assert connections() > before + 2, "it was probed"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_a_cancelled_call_says_nothing_about_the_server(
    frozen: Callable[[EmbeddedValkey], AbstractContextManager[None]], own: EmbeddedValkey
) -> None:
    async def run() -> None:
        assert await publish_message(NAME, {})
        with frozen(own):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(publish_message(NAME, {}), 0.05)
            assert redis_breaker().state == "closed"
        assert await publish_message(NAME, {})

    asyncio.run(run())
