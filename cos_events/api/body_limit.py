"""Refuses bodies that are larger than anything that could be recorded, before they are read."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException

ESCAPED = 4
"""How many times larger than the event that it asks for a body may be: JSON has escapes."""


class BodyLimitMiddleware:
    """Pure ASGI. Reading a body that is too large raises an HTTP 413; nobody has to read it.

    Parameters:
        app: the application behind it.
        most: bytes of a body.
    """

    def __init__(self, app: Any, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        received = 0

        def check(size: int) -> None:
            if size > self._most:
                raise HTTPException(413, f"the body is larger than {self._most:,} bytes")

        async def receive_within() -> Any:
            nonlocal received
            # What is announced as too large is not even begun.
            check(int(announced) if announced.isdigit() else 0)
            message = await receive()
            received += len(message.get("body", b""))
            check(received)
            return message

        await self._app(scope, receive_within, send)
