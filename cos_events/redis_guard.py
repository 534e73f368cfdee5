"""Keeps a Redis broker's garbage from stopping a worker.

Kombu's Redis transport reads a queue's item as its own JSON wrapper and raises in the middle of the
worker's loop if it is not: the worker ends, and the item is gone. Anybody who can push to the list
can do that. Here, such an item is wrapped before Kombu looks at it, so that it arrives as a message
with these bytes, and ends among the dead letters.

Private of Kombu is what this stands on: its `_brpop_read` calls
`Channel.client.parse_response(connection, "BRPOP")`, and `Channel.sep` parts a queue's name from a
priority in a key. A test pushes garbage and fails when that moves.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from kombu.utils.uuid import uuid


def guard(channel: Any) -> None:
    """Let this channel of Kombu's Redis transport receive garbage as ordinary messages."""
    client = channel.client
    parse_response = client.parse_response

    def parse(connection: Any, command: str, **options: Any) -> Any:
        response = parse_response(connection, command, **options)
        if command == "BRPOP" and response:
            key, item = response
            queue = key.decode().split(channel.sep)[0]
            return key, item if is_wrapper(item) else wrap(item, queue)
        return response

    client.parse_response = parse


def is_wrapper(item: bytes) -> bool:
    """Whether Kombu can make a message of this item."""
    try:
        wrapper = json.loads(item)
        properties = wrapper["properties"]
        if properties.get("body_encoding") == "base64":
            base64.b64decode(wrapper["body"])
        return (
            isinstance(wrapper["body"], str)
            and isinstance(properties["delivery_tag"], str)
            and isinstance(properties["delivery_info"]["exchange"], str)
            and isinstance(properties["delivery_info"]["routing_key"], str)
            and properties.get("body_encoding") in (None, "base64")
            and isinstance(wrapper.get("headers"), dict | None)
        )
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error, RecursionError):
        return False


def wrap(item: bytes, queue: str) -> bytes:
    """A message of Kombu's with this item as its body, which goes back to `queue` if restored."""
    return json.dumps(
        {
            "body": base64.b64encode(item).decode(),
            "content-encoding": "binary",
            "content-type": "application/octet-stream",
            "headers": {},
            "properties": {
                "body_encoding": "base64",
                "delivery_info": {"exchange": "", "routing_key": queue},
                "delivery_mode": 2,
                "delivery_tag": uuid(),
                "priority": 0,
            },
        }
    ).encode()
