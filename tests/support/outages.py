"""Servers that are away where a real one cannot be made so at the right moment."""

from __future__ import annotations

from sqlalchemy.exc import OperationalError


def postgres_away(*_: object, **__: object) -> None:
    """In place of a statement."""
    raise OperationalError("", {}, Exception("the server closed the connection"))
