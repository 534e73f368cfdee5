"""Keeps garbage in a Redis broker, and its outages, from stopping a worker.

Kombu's Redis transport reads a queue's item as its own JSON wrapper and raises in the middle of the
worker's loop if it is not: the worker ends, and the item is gone. Anybody who can push to the list
can do that. Here, such an item is wrapped before Kombu looks at it, so that it arrives as a message
with these bytes, and becomes a dead letter.

When the connection is lost, closing a channel gives its messages back, over a new connection. If
the transport has been closed by then, Kombu raises an AttributeError, which Celery's worker takes
for a fault of its own: it ends. Here, it is reported as what it is, a lost connection.

Private of Kombu is what this stands on: its `_brpop_read` calls
`Channel.client.parse_response(connection, "BRPOP")`, `Channel.sep` parts a queue's name from a
priority in a key, and `Channel._connparams` says where to connect. Tests push garbage, and lose a
connection, and fail when that moves.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from kombu.utils import json as kombu_json
from redis import ConnectionError as RedisConnectionError

from cos_events.redis_message import RedisMessage


def guard(channel: Any) -> None:
    """Let this channel of Kombu's Redis transport outlive garbage, and a lost connection."""
    if not getattr(channel, "receives_garbage", False):
        _receive_garbage(channel)
    _close_without_connection(channel)


def _close_without_connection(channel: Any) -> None:
    connection_parameters = channel._connparams  # noqa: SLF001 - see above

    def parameters(*args: Any, **options: Any) -> Any:
        if getattr(channel.connection, "client", None) is None:
            raise RedisConnectionError("the connection to the broker is closed")
        return connection_parameters(*args, **options)

    channel._connparams = parameters  # noqa: SLF001


def _receive_garbage(channel: Any) -> None:
    client = channel.client
    parse_response = client.parse_response

    def parse(connection: Any, command: str, **options: Any) -> Any:
        response = parse_response(connection, command, **options)
        if command == "BRPOP" and response:
            key, item = response
            queue = key.decode().split(channel.sep)[0]
            return key, wrap(item, queue) if payload_of(item, queue)[1] else item
        return response

    client.parse_response = parse


def payload_of(item: bytes, queue: str) -> tuple[dict[str, Any], bool]:
    """What Kombu makes a message from, and whether it had to be wrapped for that."""
    try:
        payload = json.loads(item)
        if isinstance(payload, dict) and isinstance(payload.get("body"), dict):
            # Bytes, as Kombu puts them into JSON when `body_encoding` is utf-8.
            payload = kombu_json.loads(item)
    except (ValueError, TypeError, RecursionError):
        payload = None
    if _is_payload(payload):
        return payload, False
    wrapped: dict[str, Any] = json.loads(wrap(item, queue))
    return wrapped, True


def _is_payload(wrapper: Any) -> bool:
    try:
        properties = wrapper["properties"]
        if (properties.get("body_encoding") or "").lower() == "base64":
            base64.b64decode(wrapper["body"])
        return (
            isinstance(wrapper["body"], str | bytes)
            and isinstance(properties["delivery_tag"], str | int)
            and isinstance(properties["delivery_info"]["exchange"], str | None)
            and isinstance(properties["delivery_info"]["routing_key"], str | None)
            and (properties.get("body_encoding") or "utf-8").lower() in ("utf-8", "base64")
            and isinstance(wrapper.get("headers"), dict | None)
        )
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error):
        return False


def wrap(item: bytes, queue: str) -> bytes:
    """A message of Kombu's with this item as its body, which goes back to `queue` if restored."""
    return RedisMessage(item, {}, "application/octet-stream", "binary").to(queue).encode()
