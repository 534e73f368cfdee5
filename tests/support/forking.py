"""What a forked child has to say."""

from __future__ import annotations

import os
from collections.abc import Callable


def said_by_a_child(say: Callable[[], str]) -> str:
    """What a forked child says before it ends."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        said = "it raised"
        try:
            said = say()
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said
