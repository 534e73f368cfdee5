"""The API in this process, as a client on this machine sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from cos_events.api import create_app

Connect = Callable[..., TestClient]


@pytest.fixture
def connect(database: Engine, environment: Callable[..., None]) -> Iterator[Connect]:
    """A client of an API with these settings; it comes from the loopback address."""
    opened: list[TestClient] = []

    def make(host: str = "127.0.0.1", **variables: str) -> TestClient:
        environment(**variables)
        client = TestClient(create_app(), "http://127.0.0.1:8000", client=(host, 50_000))
        opened.append(client)
        return client.__enter__()

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def _no_wake_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cos_events.capture.wake", lambda *_: None)
