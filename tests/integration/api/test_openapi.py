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


@pytest.fixture(autouse=True)
def _api(connect: Callable[..., TestClient]) -> None:
    """On a database of the test's own."""
    connect()


@schema.parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_each_operation_answers_as_it_says(case: Any) -> None:
    if "wait" in (body := case.body if isinstance(case.body, dict) else {}):
        body["wait"] = 0
    case.call_and_validate()
