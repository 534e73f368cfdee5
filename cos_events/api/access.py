"""Who may look inside: `/debug` and `/metrics` are closed unless they are opened on purpose."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Coroutine
from ipaddress import ip_address
from typing import Any

from fastapi import HTTPException, Request, Response, status
from fastapi.routing import APIRoute

from cos_events.settings import get_settings


class GuardedRoute(APIRoute):
    """Asks `guard` before it reads a body; a dependency is asked after it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own extension point."""
        answer = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            guard(request)
            return await answer(request)

        return guarded


def guard(request: Request) -> None:
    """Let the request through, or answer as if there were nothing here.

    With `COS_EVENTS_DEBUG_TOKEN` set, whoever sends it may; without, in development, this machine,
    but for proxies and pages of others on it.

    Raises:
        HTTPException: 404 where nothing is opened, 401 without the right token.
    """
    settings = get_settings()
    if settings.debug_token is None:
        if settings.environment == "production" or not _from_here(request):
            raise HTTPException(status.HTTP_404_NOT_FOUND, "Not Found")
        return
    # ASGI's headers are latin-1 as text, whatever the client meant: its bytes are compared.
    given = request.headers.get("authorization", "").encode("latin-1")
    expected = f"Bearer {settings.debug_token.get_secret_value()}".encode()
    if not hmac.compare_digest(given, expected):
        raise HTTPException(
            status.HTTP_401_UNAUTHORIZED,
            "send COS_EVENTS_DEBUG_TOKEN as a bearer token",
            {"WWW-Authenticate": "Bearer"},
        )


_OF_PROXIES = re.compile(r"forwarded|via|x-(forwarded|original).*|.*-ip")
_HERE = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)


def _from_here(request: Request) -> bool:
    # A proxy on this machine speaks for others, and so does a page of theirs in a browser on it,
    # by a name of theirs that leads here: then a token is needed.
    headers = request.headers
    host = headers.get("host", "")
    return (
        _is_loopback(request)
        and _HERE.fullmatch(host) is not None
        and headers.get("origin") in (None, f"{request.url.scheme}://{host}")
        and headers.get("sec-fetch-site") != "cross-site"
        and not any(_OF_PROXIES.fullmatch(name) for name in headers)
    )


def _is_loopback(request: Request) -> bool:
    try:
        return request.client is not None and ip_address(request.client.host).is_loopback
    except ValueError:
        return False
