"""Bounds the size of a decompressed message: two kilobytes may hold gigabytes of nothing.

Kombu decompresses whatever claims to be compressed, in the worker's main process, and again each
time that kills it. With this module imported, a message that holds more than `MOST` is treated as
one that cannot be decompressed. What Celery's `task_compression` produces is read as before.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

from kombu import compression

MOST = 64 * 2**20
"""Bytes: far more than any event, or any task that one would send through a broker."""


def bounded(make: Callable[[], Any]) -> Callable[[bytes], bytes]:
    """A decoder of Kombu's.

    Args:
        make: makes a decompressor, from `zlib`, `bz2` or `lzma`.
    """

    def decode(body: bytes) -> bytes:
        decompressor = make()
        content: bytes = decompressor.decompress(body, MOST)
        if not decompressor.eof:
            raise ValueError(f"it is cut short, or more than {MOST:,} bytes")
        return content

    return decode


for _kind, _encode, _make in (
    ("application/x-gzip", zlib.compress, zlib.decompressobj),
    ("application/x-bz2", bz2.compress, bz2.BZ2Decompressor),
    ("application/x-lzma", lzma.compress, lzma.LZMADecompressor),
):
    compression.register(_encode, bounded(_make), _kind)
