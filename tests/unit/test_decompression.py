"""What is compressed on a broker is read, but not without a bound."""

from __future__ import annotations

import bz2
import lzma
import tracemalloc
import zlib

import pytest
from kombu import compression
from kombu.message import Message

from cos_events import app, decompression  # noqa: F401 - a worker imports the first

COMPRESSORS = {
    "zlib": zlib.compressobj,
    "bzip2": bz2.BZ2Compressor,
    "lzma": lzma.LZMACompressor,
}


def of_zeros(name: str, size: int) -> bytes:
    """So many bytes of nothing, compressed."""
    compressor = COMPRESSORS[name]()
    parts = [compressor.compress(bytes(2**20)) for _ in range(size // 2**20)]
    return b"".join([*parts, compressor.flush()])


@pytest.mark.parametrize("name", COMPRESSORS)
def test_what_celery_compresses_is_read_as_before(name: str) -> None:
    body, kind = compression.compress(b'{"n": 1}', name)
    message = Message(body=body, headers={"compression": kind})
    assert (message.body, message.errors) == (b'{"n": 1}', [])


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_bomb_stays_compressed_and_cannot_be_read(name: str) -> None:
    bomb = of_zeros(name, 2 * decompression.MOST)
    tracemalloc.start()
    message = Message(body=bomb, headers={"compression": name})
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message.body == bomb
    assert "cut short, or more than 67,108,864 bytes" in str(message.errors[0][1])
    assert most < 3 * decompression.MOST


@pytest.mark.parametrize("body", [b"", b"garbage", zlib.compress(b"event")[:-1]])
def test_what_is_cut_short_or_garbage_cannot_be_read(body: bytes) -> None:
    assert Message(body=body, headers={"compression": "zlib"}).errors
