"""Gives each request an id, on its response, in the logs and in what it records."""

from __future__ import annotations

from typing import Any

from cos_events import context

HEADER = "x-request-id"

SCOPE_KEY = "cos_events.request_id"
"""Where the id is in the ASGI scope."""


class RequestIdMiddleware:
    """Pure ASGI, for any application.

    The id is taken from `X-Request-ID` if it is well formed (`context.request_id_from`), otherwise
    a new one is made.

    Parameters:
        app: the application behind it.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((v for k, v in scope["headers"] if k.lower() == HEADER.encode()), None)
        request_id = context.request_id_from(None if given is None else given.decode("latin-1"))
        # For whoever answers outside of this: Starlette's last resort after an error does.
        scope[SCOPE_KEY] = request_id

        async def send_with_id(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {
                    **message,
                    "headers": [*message["headers"], (HEADER.encode(), request_id.encode())],
                }
            await send(message)

        with context.request(request_id):
            await self._app(scope, receive, send_with_id)
