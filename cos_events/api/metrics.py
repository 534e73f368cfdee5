"""`GET /metrics`, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Response

from cos_events import metrics
from cos_events.api.access import GuardedRoute

router = APIRouter(
    tags=["metrics"],
    route_class=GuardedRoute,
    responses={
        401: {"description": "The token is missing or wrong."},
        404: {"description": "Not opened here."},
        503: {"description": "The extra `metrics` is not installed."},
    },
)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus's text format."}},
)
def prometheus() -> Response:
    """What processes have counted, and what PostgreSQL and the broker know."""
    content, content_type = metrics.render()
    return Response(content, media_type=content_type)
