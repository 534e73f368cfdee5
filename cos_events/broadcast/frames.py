"""A message as the frames in which AMQP 0-9-1 sends it to a server.

py-amqp rebuilds a message's method and properties each time, and writes each message by itself:
two thirds of a publisher's time in batches. Those of one batch differ in little more than their
body. The values within the frames are still encoded by py-amqp; a test compares the whole with what
it would have sent.
"""

from __future__ import annotations

from functools import lru_cache
from struct import pack
from typing import Any

from amqp import spec
from amqp.serialization import dumps

METHOD, HEADER, BODY = 1, 2, 3
"""The types of frames (AMQP 0-9-1, 4.2.3)."""

END = b"\xce"
"""Ends each frame (4.2.3)."""

OVERHEAD = 8
"""Bytes of a frame that are not its payload."""

WITH_TYPE, WITHOUT_TYPE = 0b1111_0000_0010_0000, 0b1111_0000_0000_0000
"""Which properties follow (4.2.6.1): content type and encoding, headers, delivery mode; a type."""

PERSISTENT = 2
"""As delivery mode: the message is kept on disk."""


def frames_of(  # noqa: PLR0913 - what a message is made of
    body: bytes,
    headers: dict[str, Any],
    *,
    channel: int,
    frame_max: int,
    exchange: str = "",
    routing_key: str = "",
    type: str | None = None,  # noqa: A002 - the property's name
) -> bytes:
    """What publishes a persistent message of JSON.

    Args:
        body: UTF-8.
        headers: of values that AMQP's tables can hold.
        channel: the number of the channel that it goes through.
        frame_max: the most bytes of a frame, as agreed with the server.
        exchange: where it goes; by default the one that knows each queue by its name.
        routing_key: how it is routed from there.
        type: AMQP's property of that name.
    """
    properties = _properties(headers, type) if headers else _properties_alone(type)
    header = pack(">HHQ", spec.Basic.CLASS_ID, 0, len(body)) + properties
    most = frame_max - OVERHEAD
    bodies = (body[start : start + most] for start in range(0, len(body), most))
    return b"".join(
        (
            _method(channel, exchange, routing_key),
            _frame(HEADER, channel, header),
            *(_frame(BODY, channel, each) for each in bodies),
        )
    )


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return pack(">BHI", kind, channel, len(payload)) + payload + END


@lru_cache(maxsize=1_000)
def _method(channel: int, exchange: str, routing_key: str) -> bytes:
    arguments = dumps("Bssbb", (0, exchange, routing_key, False, False))
    return _frame(METHOD, channel, pack(">HH", *spec.Basic.Publish) + arguments)


def _properties(headers: dict[str, Any], type: str | None) -> bytes:  # noqa: A002 - its name
    values = ("application/json", "utf-8", headers, PERSISTENT)
    if type is None:
        return pack(">H", WITHOUT_TYPE) + dumps("ssFo", values)
    return pack(">H", WITH_TYPE) + dumps("ssFos", (*values, type))


@lru_cache(maxsize=1_000)
def _properties_alone(type: str | None) -> bytes:  # noqa: A002 - its name
    return _properties({}, type)
