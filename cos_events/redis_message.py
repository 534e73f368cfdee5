"""A message in the form in which Kombu's Redis transport writes it into a list or a channel.

Workers with any version of Kombu can read this form. Kombu's own producer takes three times as
long, and builds each copy again. A test compares the two.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from kombu.utils.uuid import uuid


class RedisMessage:
    """One message, for any number of queues.

    Parameters:
        body: its bytes.
        headers: of JSON values.
        content_type: of the body; JSON by default.
        content_encoding: of the body.
    """

    def __init__(
        self,
        body: bytes,
        headers: Mapping[str, Any],
        content_type: str = "application/json",
        content_encoding: str = "utf-8",
    ) -> None:
        wrapper = {
            "body": base64.b64encode(body).decode(),
            "content-encoding": content_encoding,
            "content-type": content_type,
            "headers": headers,
        }
        self._open = json.dumps(wrapper)[:-1]

    def to(self, routing_key: str, exchange: str = "") -> str:
        """The JSON of a copy: for this queue, or for an exchange's channel."""
        return f'{self._open}, "properties": {_properties(exchange, routing_key)}"{uuid()}"}}}}'


@lru_cache(maxsize=1_000)
def _properties(exchange: str, routing_key: str) -> str:
    properties = {
        "delivery_mode": 2,
        "priority": 0,
        "body_encoding": "base64",
        "delivery_info": {"exchange": exchange, "routing_key": routing_key},
    }
    return f'{json.dumps(properties)[:-1]}, "delivery_tag": '
