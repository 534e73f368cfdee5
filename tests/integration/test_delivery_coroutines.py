"""Handlers that are coroutines: one event loop, in which each call ends with its delivery."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from cos_events import Envelope

if TYPE_CHECKING:
    from conftest import Bus


@pytest.fixture
def stock(database: Engine) -> Callable[[], int]:
    """What is left of the only article."""
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE stock (number int)"))
        connection.execute(text("INSERT INTO stock VALUES (0)"))

    def read() -> int:
        with database.connect() as connection:
            return connection.execute(text("SELECT number FROM stock")).scalar_one()

    return read


def take_one(session: Session) -> None:
    session.execute(text("UPDATE stock SET number = number + 1"))


@pytest.fixture
def soft_limit() -> Iterator[Callable[[float], None]]:
    """End what this thread does after so many seconds, as a pool's process does."""

    def over(*_: object) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGUSR1, over)
    yield lambda seconds: threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.timeout(60)
def test_what_a_failed_gather_left_behind_cannot_use_the_closed_session(
    bus: Bus, stock: Callable[[], int]
) -> None:
    attempts: list[Envelope] = []

    async def ask_another_server() -> None:
        await asyncio.sleep(0.05)
        if len(attempts) == 1:
            raise OSError("the other server is away")

    async def take(session: Session) -> None:
        await asyncio.sleep(0.1)
        take_one(session)

    async def handler(message: Envelope, session: Session) -> None:
        attempts.append(message)
        await asyncio.gather(ask_another_server(), take(session))

    name = bus.declare(handler, retry_backoff=False, default_retry_delay=0)
    raw = bus.record()
    assert bus.run(name, raw) == "RETRY"
    assert bus.run(name, raw, retries=1) == "SUCCESS"
    assert stock() == 1


def test_a_coroutine_whose_time_is_over_does_not_go_on_within_the_next_call(
    bus: Bus, stock: Callable[[], int], soft_limit: Callable[[float], None]
) -> None:
    ended: list[int] = []

    async def handler(message: Envelope, session: Session) -> None:
        await asyncio.sleep(1.0 if message.data["n"] == 1 else 1.2)
        take_one(session)
        ended.append(message.data["n"])

    name = bus.declare(handler, max_retries=0)
    first, second = bus.record(n=1), bus.record(n=2)
    soft_limit(0.3)
    bus.run(name, first)
    assert bus.run(name, second) == "SUCCESS"
    assert (bus.state(name, first), bus.state(name, second)) == ("dead", "delivered")
    assert ended == [2]
    assert stock() == 1


def test_a_coroutine_has_the_context_of_its_own_call(bus: Bus) -> None:
    current: ContextVar[int] = ContextVar("current")
    seen: list[int] = []

    async def note() -> None:
        seen.append(current.get())

    def handler(message: Envelope) -> object:
        current.set(message.data["n"])
        return note()

    name = bus.declare(handler)
    for n in range(2):
        assert bus.run(name, bus.record(n=n)) == "SUCCESS"
    assert seen == [0, 1]
