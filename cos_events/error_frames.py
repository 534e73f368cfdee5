"""Where an error was raised, as far as that is the application's own code.

Frames as Python writes them, without the error's text, which may contain an event's content.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import PurePath
from traceback import format_tb
from types import TracebackType

_BUS = __name__.partition(".")[0]
_INSTALLED = {"site-packages", "dist-packages"}


def frames(error: BaseException) -> str:
    """All calls from the handler's on, outermost first, each on its own lines.

    All frames if none is the application's; empty for an error that was not raised.
    """
    return _lines(format_tb(_handler(error)))


def innermost_frame(error: BaseException) -> str:
    """The application's line that raised it, or called what did; if there is none, the last line.

    The application's code is the handler's package, and what is not installed as a library.
    Empty for an error that was not raised.
    """
    handler = _handler(error)
    theirs = [
        step
        for step in _steps(handler)
        if not _is_callers(step)
        and (_package(step) == _package(handler) or not _is_installed(step))
    ]
    return _lines(format_tb(theirs[-1], 1) if theirs else format_tb(handler)[-1:])


def _handler(error: BaseException) -> TracebackType | None:
    """The first frame that is neither the bus's nor the standard library's (an event loop's)."""
    steps = _steps(error.__traceback__)
    return next((step for step in steps if not _is_callers(step)), error.__traceback__)


def _steps(step: TracebackType | None) -> Iterator[TracebackType]:
    while step is not None:
        yield step
        step = step.tb_next


def _is_callers(step: TracebackType) -> bool:
    return _package(step) in {_BUS, "", *sys.stdlib_module_names}


def _is_installed(step: TracebackType) -> bool:
    file = step.tb_frame.f_code.co_filename
    # Libraries have code that they generate at run time, `<string>` and the like.
    return file.startswith("<") or not _INSTALLED.isdisjoint(PurePath(file).parts)


def _package(step: TracebackType | None) -> str:
    module = step.tb_frame.f_globals.get("__name__") if step else None
    return str(module or "").partition(".")[0]


def _lines(formatted: list[str]) -> str:
    return "".join(f"\n{each.rstrip()}" for each in formatted)
