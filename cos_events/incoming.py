"""A message in a worker's hands: what it is, and the Celery task that is made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

from kombu.message import Message
from kombu.utils.uuid import uuid

from cos_events import telemetry
from cos_events.broadcast.message import text_of
from cos_events.task_message import EMBED, REDELIVERED, task_headers
from cos_events.topology import PUBLISH_TASK

MOST_RETRIES = 2**31 - 2
"""The attempt after these is the last that the ledger can count."""

LONGEST_WAIT = timedelta(days=1)
"""For a retry on the broker: far more than the bus lets one wait there, since clocks differ."""

_IDS = ("id", "root_id", "parent_id")
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_wake_up(message: Message) -> bool:
    """Whether this is a publish task that a dispatcher sent; nothing else belongs on its queue."""
    headers = message.headers
    if not isinstance(headers, dict) or headers.get("task") != PUBLISH_TASK or headers.get("eta"):
        return False
    try:
        (ids,), kwargs, _embed = message.payload
    except Exception:  # noqa: BLE001 - whatever it is, it is not what a dispatcher sends
        return False
    return kwargs == {} and isinstance(ids, list) and all(type(each) is int for each in ids)


class TaskMessage(Message):
    """A task message of Celery's protocol 2 made of one or more broker messages.

    Acknowledging or rejecting it does so to each of them, and calls `on_end`.

    Parameters:
        name: of the task.
        argument: its only one; of JSON values.
        argsrepr: what logs and Flower show instead.
        parts: the broker's messages.
        headers: more than those of Celery's protocol.
        on_end: called once they are acknowledged or rejected.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a message is made of
        self,
        name: str,
        argument: Any,
        argsrepr: str,
        parts: Sequence[Message],
        headers: dict[str, Any],
        on_end: Callable[[], object],
    ) -> None:
        task_id = uuid()
        super().__init__(
            body=json.dumps([[argument], {}, EMBED]),
            content_type="application/json",
            content_encoding="utf-8",
            delivery_info={
                **parts[0].delivery_info,
                "redelivered": any(part.delivery_info.get("redelivered") for part in parts),
            },
            properties={"correlation_id": task_id, "delivery_mode": 2},
            headers=task_headers(name, task_id, argsrepr) | headers,
            accept={"application/json"},
            channel=parts[0].channel,
            delivery_tag=parts[0].delivery_tag,
        )
        self.parts = parts
        self._on_end = on_end

    def ack(self, multiple: bool = False) -> None:
        """Acknowledge every part."""
        try:
            # Our RabbitMQ channel's; on Redis they go together in any case.
            with getattr(self.channel, "together", nullcontext)():
                for part in self.parts:
                    part.ack(multiple=multiple)
        finally:
            self._on_end()

    def reject(self, requeue: bool = False) -> None:
        """Reject every part."""
        try:
            for part in self.parts:
                part.reject(requeue=requeue)
        finally:
            self._on_end()


Merge = Callable[[Sequence[Message], Callable[[], object]], TaskMessage]
"""Makes one task message of several messages; the second argument is its `on_end`."""


def delivery_of(
    parts: Sequence[Message], on_end: Callable[[], object] = lambda: None
) -> TaskMessage:
    """The task that delivers these envelopes to the subscription whose queue they came from."""
    return TaskMessage(
        parts[0].delivery_info["routing_key"],
        [text_of(part) for part in parts],
        f"(<{len(parts)} events>,)",
        parts,
        {
            REDELIVERED: any(is_redelivered(part) for part in parts),
            telemetry.TRACEPARENTS: [_traceparent(part) for part in parts],
        },
        on_end,
    )


def retry_of(message: Message) -> TaskMessage | None:
    """The task of a copy that was sent for a retry; None if this is not one.

    It has what the bus writes into such a message and nothing else: whatever anybody may put
    beside that, Celery would stumble over, and end the worker.
    """
    headers = message.headers
    if not isinstance(headers, dict) or headers.get("task") != message.delivery_info["routing_key"]:
        return None
    try:
        (raws,), kwargs, _embed = message.payload
        eta = _eta(headers.get("eta"))
    except Exception:  # noqa: BLE001 - whatever it is, it is not what we sent
        return None
    retries: Any = headers.get("retries")
    if not (
        kwargs == {}
        and isinstance(raws, list)
        and all(isinstance(raw, str) for raw in raws)
        and type(retries) is int
        and 0 <= retries <= MOST_RETRIES
    ):
        return None
    return TaskMessage(
        headers["task"],
        raws,
        f"(<{len(raws)} events>,)",
        [message],
        {
            **{name: headers[name] for name in _IDS if _UUID.fullmatch(str(headers.get(name)))},
            "retries": retries,
            "eta": eta,
            REDELIVERED: is_redelivered(message),
            telemetry.TRACEPARENT: _traceparent(message),
        },
        lambda: None,
    )


def _eta(given: str | None) -> str | None:
    """The same, unless it is over.

    Raises:
        Exception: it is no moment, or none for which the bus would have a message wait.
    """
    if given is None:
        return None
    wait = datetime.fromisoformat(given) - datetime.now(UTC)
    if wait > LONGEST_WAIT:
        raise ValueError(given)
    return given if wait > timedelta() else None


def wake_up_of(parts: Sequence[Message], on_end: Callable[[], object]) -> TaskMessage:
    """The publish task for the outbox ids of all these publish tasks."""
    ids = [each for part in parts for each in part.payload[0][0]]
    return TaskMessage(PUBLISH_TASK, ids, f"(<{len(ids)} outbox ids>,)", parts, {}, on_end)


def is_redelivered(message: Message) -> bool:
    """Whether an earlier copy of this message was in a worker's hands."""
    info, headers = message.delivery_info or {}, message.headers or {}
    return bool(info.get("redelivered") or headers.get(REDELIVERED))


def _traceparent(message: Message) -> str | None:
    headers = message.headers
    found = headers.get(telemetry.TRACEPARENT) if isinstance(headers, dict) else None
    return found if isinstance(found, str) else None
