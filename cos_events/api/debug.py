"""`/debug/…`: write a record and see it travel, look at Redis and at recent messages."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field
from redis import RedisError
from sqlalchemy.orm import Session

from cos_events.api import bad_input
from cos_events.api.access import GuardedRoute
from cos_events.api.recent import RecentMessages
from cos_events.circuit_breaker import CircuitOpen
from cos_events.context import current_request_id
from cos_events.envelope import Envelope, Name
from cos_events.error_text import one_line
from cos_events.l1 import log_l1
from cos_events.pubsub import get_redis_client, redis_breaker
from cos_events.settings import get_settings, mask
from cos_events.store.engine import explained, get_engine

router = APIRouter(
    prefix="/debug",
    tags=["debug"],
    route_class=GuardedRoute,
    responses={
        401: {"description": "The token is missing or wrong."},
        404: {"description": "Not opened here."},
        bad_input.STATUS: {"model": bad_input.BadInput, "description": "What is wrong with it."},
    },
)


PATIENCE = 0.5
"""Seconds that Redis may take to answer a request for its health."""


class TestLog(BaseModel):
    """What is written to L1."""

    model_config = ConfigDict(extra="forbid")

    message: str = Field(default="hello", max_length=10_000)
    wait: float = Field(default=0.5, ge=0, le=5, allow_inf_nan=False, strict=True)
    """Seconds to wait until the record is seen on the channel."""


class TestLogResult(BaseModel):
    """What became of it."""

    base_log_id: UUID
    request_id: str
    committed_at: datetime
    commit_ms: float
    """Milliseconds for the transaction."""
    published: bool
    """Whether it was seen on the channel in time; it is delivered in any case."""
    seen_after_ms: float | None
    """Milliseconds from the commit."""


class RedisHealth(BaseModel):
    """The live feed's Redis, as this process sees it."""

    url: str
    answers: bool
    latency_ms: float | None
    error: str | None
    breaker: Literal["closed", "open", "half_open"]
    breaker_opened: int
    """How often it has opened."""
    connections_in_use: int
    connections_idle: int
    max_connections: int


class Message(BaseModel):
    """An envelope that was on the channel."""

    heard_at: datetime
    envelope: Envelope


def _recent(request: Request) -> RecentMessages:
    return cast("RecentMessages", request.app.state.recent)


Recent = Annotated[RecentMessages, Depends(_recent)]


@router.post(
    "/test-log",
    responses={
        400: {"description": "The body cannot be read."},
        413: {"model": bad_input.BadInput, "description": "It is larger than any event."},
        503: {"description": "PostgreSQL cannot be used."},
    },
)
async def write_test_log(recent: Recent, body: TestLog | None = None) -> TestLogResult:
    """Write an L1 record, and say whether it was seen on the channel.

    Answers within the wait even when the broker is down, and at once while Redis is:
    `published` is then false.
    """
    asked = body or TestLog()
    begun = time.perf_counter()
    event_id, request_id = await run_in_threadpool(_write, asked.message)
    committed_at = datetime.now(UTC)
    commit_ms = (time.perf_counter() - begun) * 1000
    seen_at = await recent.wait_for(event_id, asked.wait)
    after = None if seen_at is None else (seen_at - committed_at).total_seconds() * 1000
    return TestLogResult(
        base_log_id=event_id,
        request_id=request_id,
        committed_at=committed_at,
        commit_ms=round(commit_ms, 3),
        published=seen_at is not None,
        seen_after_ms=None if after is None else round(max(0.0, after), 3),
    )


def _write(message: str) -> tuple[UUID, str]:
    data: dict[str, Any] = {"level": "INFO", "component": "debug", "message": message}
    with explained(), Session(get_engine()) as session, session.begin():
        return log_l1(session, "event_log", data), current_request_id()


@router.get("/redis-health")
async def redis_health() -> RedisHealth:
    """How Redis answers, and what the circuit breaker thinks of it."""
    settings, breaker = get_settings(), redis_breaker()
    client = get_redis_client()
    begun, error = time.perf_counter(), None
    try:
        with breaker:
            async with asyncio.timeout(PATIENCE):
                await client.ping()
    except TimeoutError:
        error = f"no answer within {PATIENCE} s"
    except (RedisError, OSError, CircuitOpen) as failed:
        error = one_line(failed)
    latency = (time.perf_counter() - begun) * 1000
    (idle, _), (in_use, _) = client.connection_pool.get_connection_count()
    return RedisHealth(
        url=mask(settings.redis_url),
        answers=error is None,
        latency_ms=None if error else round(latency, 3),
        error=error,
        breaker=breaker.state,
        breaker_opened=breaker.opened,
        connections_in_use=in_use,
        connections_idle=idle,
        max_connections=settings.redis_max_connections,
    )


@router.get("/messages")
async def messages(
    recent: Recent,
    event_type: Annotated[Name | None, Query()] = None,
    module: Annotated[Name | None, Query()] = None,
    request_id: Annotated[str | None, Query(max_length=128)] = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> list[Message]:
    """The newest messages of the live feed, newest first."""
    found = [
        Message(heard_at=seen.heard_at, envelope=seen.envelope)
        for seen in recent.newest()
        if event_type in (None, seen.envelope.event_type)
        and module in (None, seen.envelope.source_module)
        and request_id in (None, seen.envelope.request_id)
    ]
    return found[:limit]
