"""`GET /health/live` and `/health/ready`."""

from __future__ import annotations

import logging
from typing import Literal

from fastapi import APIRouter, Response, status
from pydantic import BaseModel

from cos_events import health
from cos_events.errors import DatabaseAway, SchemaMissing

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/health", tags=["health"])


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class Ready(BaseModel):
    """Whether events move."""

    status: Literal["ready", "not ready"]
    problems: list[str]


@router.get("/live")
async def live() -> Live:
    """Whether this process answers; looks at nothing else."""
    return Live()


@router.get("/ready", responses={503: {"model": Ready, "description": "Events are not moving."}})
def ready(response: Response) -> Ready:
    """Whether events are moving: the outbox's age, and what each subscription still lacks."""
    problems = _problems()
    if problems:
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return Ready(status="not ready" if problems else "ready", problems=problems)


def _problems() -> list[str]:
    # Anyone may ask: where the database is, and as whom we go there, is for the log.
    try:
        return list(health.problems())
    except DatabaseAway as error:
        logger.warning("not ready: %s", error)
        return ["PostgreSQL cannot be used: the API's log says why"]
    except SchemaMissing as error:
        logger.warning("not ready: %s", error)
        return [
            "the database lacks cos-events tables, or has old ones: run `cos-events db upgrade`"
        ]
