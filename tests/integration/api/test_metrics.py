"""`/metrics`: Prometheus's text, for those who may look."""

from __future__ import annotations

from collections.abc import Callable

from fastapi.testclient import TestClient


def test_metrics_are_prometheus_text(connect: Callable[..., TestClient]) -> None:
    answer = connect().get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "cos_events_up" in answer.text


def test_metrics_are_closed_as_debug_is(connect: Callable[..., TestClient]) -> None:
    assert connect(COS_EVENTS_ENVIRONMENT="production").get("/metrics").status_code == 404
    token = "a-token-of-some-length"
    client = connect(COS_EVENTS_ENVIRONMENT="production", COS_EVENTS_DEBUG_TOKEN=token)
    assert client.get("/metrics").status_code == 401
    allowed = {"Authorization": f"Bearer {token}"}
    assert client.get("/metrics", headers=allowed).status_code == 200
