"""Input that is refused: 422, and one sentence that names it."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel


class BadInput(BaseModel):
    """What it is answered with."""

    detail: str


STATUS = 422


async def answer(_request: Request, error: Exception) -> JSONResponse:
    """The error's own sentence; of FastAPI's list one of the first five, without their values."""
    if isinstance(error, RequestValidationError):
        sentence = "; ".join(map(_sentence, error.errors()[:5]))
    else:
        sentence = str(error)
    return JSONResponse({"detail": sentence}, status_code=STATUS)


def _sentence(problem: Any) -> str:
    # Numbers in it are positions in lists, or in a body that is not JSON.
    names = [each for each in problem["loc"][1:] if isinstance(each, str)] or problem["loc"][:1]
    return f"{'.'.join(names):.64}: {problem['msg']}"
