"""The FastAPI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from cos_events import telemetry
from cos_events.api import bad_input, debug, health, metrics
from cos_events.api.body_limit import ESCAPED, BodyLimitMiddleware
from cos_events.api.recent import RecentMessages
from cos_events.api.request_id import HEADER, SCOPE_KEY, RequestIdMiddleware
from cos_events.errors import CosEventsError, InvalidPayload
from cos_events.settings import get_settings


def create_app() -> FastAPI:
    """The API, for uvicorn or another ASGI server: `cos_events.api.application:create_app`.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    settings = get_settings()
    production = settings.environment == "production"
    app = FastAPI(
        title="cos-events",
        version=version("cos-events"),
        summary="If the transaction committed, every subscription runs.",
        lifespan=_lifespan,
        # What is closed should not be described to everybody either.
        openapi_url=None if production else "/openapi.json",
    )
    app.state.recent = RecentMessages()
    app.include_router(health.router)
    app.include_router(debug.router)
    app.include_router(metrics.router)
    for refused in (InvalidPayload, RequestValidationError):
        app.add_exception_handler(refused, bad_input.answer)
    app.add_exception_handler(CosEventsError, _unavailable)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(BodyLimitMiddleware, most=ESCAPED * settings.max_payload_bytes)
    app.add_middleware(RequestIdMiddleware)
    # The last one added is the outermost: the span holds all of the request.
    app.add_middleware(telemetry.TraceRequests)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    recent: RecentMessages = app.state.recent
    recent.start()
    yield
    await recent.stop()


async def _unavailable(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=503)


async def _failed(request: Request, _error: Exception) -> JSONResponse:
    # The error itself propagates to the server, which logs it.
    return JSONResponse(
        {"detail": "an unexpected error; see the API's log"},
        status_code=500,
        headers={HEADER: request.scope.get(SCOPE_KEY, "")},
    )
