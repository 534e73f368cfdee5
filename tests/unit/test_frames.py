"""What the bus sends to RabbitMQ itself is what py-amqp would have sent."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import amqp
import pytest
from amqp.method_framing import frame_writer

from cos_events.broadcast.frames import frames_of

CHANNEL, FRAME_MAX = 7, 4_096


class Connection:
    """What py-amqp's channel needs of its connection; keeps what is written."""

    confirm_publish = False
    frame_max = FRAME_MAX
    bytes_sent = 0

    def __init__(self) -> None:
        self.channels: dict[int, amqp.Channel] = {}
        self.client_properties: dict[str, Any] = {}
        self.transport = self
        self.frame_writer = frame_writer(self, self)
        self.written = b""

    def _claim_channel_id(self, channel_id: int) -> None:
        pass

    def having_timeout(self, _seconds: float | None) -> nullcontext[None]:
        return nullcontext()

    def write(self, data: bytes) -> None:
        self.written += bytes(data)


def by_py_amqp(body: bytes, exchange: str, routing_key: str, **properties: Any) -> bytes:
    message = amqp.Message(
        body,
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=2,
        **{name: value for name, value in properties.items() if value is not None},
    )
    connection = Connection()
    amqp.Channel(connection, CHANNEL).basic_publish(message, exchange, routing_key)
    return connection.written


@pytest.mark.parametrize("size", [0, 1, 300, FRAME_MAX - 8, FRAME_MAX - 7, 3 * FRAME_MAX])
@pytest.mark.parametrize(
    "headers", [{}, {"traceparent": "00-1-2-01"}, {"timelimit": [None, None], "n": 1, "ü": True}]
)
@pytest.mark.parametrize(
    ("exchange", "routing_key", "kind"),
    [("mem0.recorded.cc", "", "event_log"), ("", "activity", None)],
)
def test_a_message_has_the_frames_in_which_py_amqp_sends_it(
    size: int, headers: dict[str, Any], exchange: str, routing_key: str, kind: str | None
) -> None:
    body = b"x" * size
    where = {"exchange": exchange, "routing_key": routing_key, "type": kind}
    ours = frames_of(body, headers, channel=CHANNEL, frame_max=FRAME_MAX, **where)
    assert ours == by_py_amqp(body, application_headers=headers, **where)
