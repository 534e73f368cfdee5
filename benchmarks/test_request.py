"""From an HTTP request to its subscriber, beside the same by hand.

make test ARGS="benchmarks/test_request.py -s"
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.rounds import measure
from cos_events.cli.bench.app import SINGLE
from cos_events.cli.bench.application import Application
from cos_events.cli.bench.marks import Marks
from cos_events.cli.bench.servers import stage

ROUNDS = 500
EVENTS = 10_000

Note = Callable[[str, str, list[float]], None]


class Orders:
    """A web application whose requests commit an event each, and its subscriber."""

    def __init__(self, port: int, handled: Marks) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}")
        self._handled = handled
        self._numbers = iter(range(EVENTS))

    def ask(self, path: str) -> None:
        """Send a request, and wait until its event is handled."""
        number = next(self._numbers)
        assert self._client.post(f"/{path}/{number}").status_code == 200
        deadline = time.monotonic() + 20
        while not self._handled.done(number, 1):
            assert time.monotonic() < deadline, "not handled"
            time.sleep(0.0001)


@pytest.fixture(scope="module")
def orders() -> Iterator[Orders]:
    """It runs, with a publisher and a subscriber."""
    with stage("redis", EVENTS) as on, closing(Application(on.engine, EVENTS)) as application:
        web = FastAPI()

        @web.post("/bus/{number}")
        def through_the_bus(number: int) -> None:
            application.commit(SINGLE, range(number, number + 1))

        @web.post("/raw/{number}")
        def by_hand(number: int) -> None:
            application.commit_raw(number)

        server = uvicorn.Server(uvicorn.Config(web, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield Orders(server.servers[0].sockets[0].getsockname()[1], on.handled)
        server.should_exit = True
        thread.join(10)


@pytest.mark.benchmark(group="request to subscriber")
def test_request_to_subscriber(benchmark: BenchmarkFixture, orders: Orders, note: Note) -> None:
    values = measure(benchmark, ROUNDS, lambda: orders.ask("bus"))
    note("HTTP request to subscriber", "ms", values)


@pytest.mark.benchmark(group="request to subscriber")
def test_request_to_subscriber_floor(
    benchmark: BenchmarkFixture, orders: Orders, note: Note
) -> None:
    values = measure(benchmark, ROUNDS, lambda: orders.ask("raw"))
    note("  floor: commit, raw push, raw pop", "ms", values)
