"""What the API says of itself is what it does: checked by schemathesis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings

from cos_events.api import create_app

schema = schemathesis.openapi.from_asgi("/openapi.json", create_app())


TOKEN = "opens-what-is-closed"


@pytest.fixture(autouse=True)
def _api(connect: Callable[..., TestClient]) -> None:
    """On a database of the test's own."""
    connect(COS_EVENTS_DEBUG_TOKEN=TOKEN)


@schema.parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_each_operation_answers_as_it_says(case: Any) -> None:
    body = case.body if isinstance(case.body, dict) else {}
    if isinstance(wait := body.get("wait"), int | float) and wait > 0:
        # What is allowed would take its time.
        body["wait"] = 0.001 if wait <= 5 else wait
    answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code not in (401, 404)
    case.validate_response(answer)
