"""A span for each HTTP request, for any ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from cos_events.telemetry.names import HTTP_METHOD, HTTP_ROUTE, HTTP_STATUS, SpanName
from cos_events.telemetry.tracing import TRACEPARENT, span, tracing

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class TraceRequests:
    """ASGI middleware: times each request, and continues the caller's trace if it names one.

    Make it the outermost layer of the application, so that everything else is within the span.

    Parameters:
        app: the application that answers.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request; anything else goes through untouched."""
        if scope["type"] != "http" or not tracing():
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        caller = dict(scope["headers"]).get(TRACEPARENT.encode(), b"").decode("latin-1")
        with span(SpanName(method, "server"), "", {HTTP_METHOD: method}, caller) as request:

            async def answer(message: Message) -> None:
                if message["type"] == "http.response.start":
                    request.set({HTTP_STATUS: message["status"]})
                    if message["status"] >= 500:
                        request.fail(str(message["status"]))
                await send(message)

            try:
                await self._app(scope, receive, answer)
            finally:
                # Known only now; not the path, which may contain an id.
                if route := getattr(scope.get("route"), "path", None):
                    request.rename(f"{method} {route}")
                    request.set({HTTP_ROUTE: route})
