"""No child is forked while a thread of ours may hold a lock that the child would wait for.

Celery forks a pool's child whenever one is to be replaced, and threads of ours run in its parent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from forking import said_by_a_child
from sqlalchemy import Engine

from cos_events import broker, metrics, process
from cos_events.dispatcher import Dispatcher
from cos_events.relay import Relay


@pytest.fixture
def fork(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Fork in another thread, once; the test fails unless that waits for the caller to go on."""
    monkeypatch.setattr(process, "FORK_WAITS", 60.0)
    said: list[str] = []
    forking = threading.Thread(target=lambda: said.append(said_by_a_child(lambda: "forked")))

    def begin(*_: object) -> int:
        if forking.ident is None:
            forking.start()
            forking.join(0.3)
            said.append("called")
        return 0

    yield begin
    forking.join(60)
    assert said == ["called", "forked"]


def test_a_fork_waits_while_wake_ups_are_sent(fork: Callable[..., object]) -> None:
    dispatcher = Dispatcher(fork, interval=0)
    dispatcher.wake([1])
    dispatcher.close(60)


def test_a_fork_waits_while_a_scrape_reads(
    database: Engine, monkeypatch: pytest.MonkeyPatch, fork: Callable[..., object]
) -> None:
    monkeypatch.setattr(broker, "queue_depths", lambda _names: {"": fork()})
    metrics.render()


def test_a_fork_waits_for_the_relays_sweep(
    database: Engine,
    broker_url: str,
    monkeypatch: pytest.MonkeyPatch,
    eventually,
    fork: Callable[..., int],
) -> None:
    swept: list[int] = []
    monkeypatch.setattr("cos_events.relay.publish_once", lambda: swept.append(fork()) or 0)
    relay = Relay(interval=0.02)
    relay.start()
    eventually(lambda: swept)
    relay.stop()
