"""Messages as a worker has them from its broker."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kombu.message import Message

from cos_events.task_message import EMBED
from cos_events.topology import PUBLISH_QUEUE, PUBLISH_TASK


class Part(Message):
    """A message that knows how it ended."""

    def __init__(self, body: str = "{}", **options: Any) -> None:
        options = {"delivery_info": {"routing_key": "q"}, **options}
        super().__init__(body=body, delivery_tag=body, **options)
        self.ended = ""

    def ack(self, multiple: bool = False) -> None:
        self.ended = "acknowledged"

    def reject(self, requeue: bool = False) -> None:
        self.ended = "rejected"


def wake_up(argument: Any, **headers: Any) -> Message:
    return Part(
        json.dumps([[argument], {}, EMBED]),
        content_type="application/json",
        content_encoding="utf-8",
        headers={"task": PUBLISH_TASK, **headers},
        delivery_info={"routing_key": PUBLISH_QUEUE},
    )


def at_once(function: Callable[[], None]) -> None:
    function()
