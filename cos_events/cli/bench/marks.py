"""When each event was handled or heard, in a file that several processes write and read."""

from __future__ import annotations

import mmap
import struct
import time
from array import array
from pathlib import Path
from typing import Self

_SIZE = 8


class Marks:
    """One time for each event number, in seconds of the system's monotonic clock; 0 for none.

    Parameters:
        path: of the file; every process on this machine that opens it sees the same marks.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 0)

    @classmethod
    def make(cls, path: Path, count: int) -> Self:
        """A new file for this many events."""
        path.write_bytes(bytes(count * _SIZE))
        path.chmod(0o666)
        return cls(path)

    def put(self, number: int) -> None:
        """Note that it is now; the first note stays."""
        if not any(self._shared[number * _SIZE : (number + 1) * _SIZE]):
            struct.pack_into("d", self._shared, number * _SIZE, time.monotonic())

    def times(self, start: int = 0, count: int | None = None) -> array[float]:
        """The times of these events."""
        end = None if count is None else (start + count) * _SIZE
        return array("d", self._shared[start * _SIZE : end])

    def done(self, start: int, count: int) -> int:
        """How many of these events have a time."""
        return count - self.times(start, count).count(0.0)
