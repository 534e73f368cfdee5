"""What is unacknowledged on Redis: noted by the script that fetches it, removed together.

Kombu keeps these messages in a hash by their delivery tags, each as `[message, exchange, routing
key]`, and the times at which they were delivered in a sorted set; after the visibility timeout a
worker puts back what is still there. Keys and formats here are Kombu's, so that workers with its
own transport do so for ours, and ours for theirs.

This relies on private parts of Kombu: `QoS.unacked_key` and `unacked_index_key`, that
`QoS.restore_by_tag` reads that form, and `Channel.conn_or_acquire`. Tests run each of them on a
real server.
"""

from __future__ import annotations

import json
import time
from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.uuid import uuid
from redis.exceptions import ResponseError

from cos_events.redis_guard import payload_of, wrap

# The stubs know too little of these classes.
_redis: Any = redis

GATHER_SECONDS = 0.02
"""The longest time that an acknowledgement waits for others."""

AGAIN_SECONDS = 1.0
"""After a refusal, acknowledgements are tried again after this time."""

MAX_GATHERED = 100
"""How many acknowledgements are sent at once."""

MAX_FETCHED_BYTES = 1 << 20
"""A fetch of what is acknowledged ends after this many bytes: it blocks Redis for others."""

_TAKE = """
local mark = '"delivery_tag": "'
local function tag_of(item, otherwise)
  local _, before = string.find(item, mark, 1, true)
  local after = before and string.find(item, '"', before + 1, true)
  if not after or after == before + 1 or string.find(item, mark, after, true) then
    return otherwise
  end
  return string.sub(item, before + 1, after - 1)
end
local found, item, size = {}, ARGV[1], 0
for number = tonumber(ARGV[2]), tonumber(ARGV[3]) do
  local tag = tag_of(item, ARGV[4] .. number)
  redis.call('HSET', KEYS[2], tag, '[' .. item .. ARGV[5])
  redis.call('ZADD', KEYS[3], ARGV[6], tag)
  found[#found + 1], found[#found + 2] = tag, item
  size = size + #item
  if number == tonumber(ARGV[3]) or size >= tonumber(ARGV[7]) then break end
  item = redis.call('RPOP', KEYS[1])
  if not item then break end
end
return found
"""
"""Notes the current message among the unacknowledged, then pops and notes more of the queue.

Uses the tag that the message itself carries, as Kombu does: then the acknowledgement of a task that
ran longer than the visibility timeout removes the copy too, and a script that is sent twice forgets
nothing. If that tag is not easily found, it uses one of this channel's.
"""


class QoS(_redis.QoS):  # type: ignore[misc]
    """Unacknowledged messages: noted by the fetch, removed together."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.noted: set[str] = set()
        """Tags of what was fetched and is not delivered yet."""
        self._tag_prefix = f"{uuid()}."
        self._next_tag = 0
        self._script: Any = None
        self._acknowledged: list[str] = []
        self._is_due = False

    def can_consume(self) -> bool:
        """Whether there is room, and enough for a fetch; while acknowledgements gather, so does it.

        In a prefork worker room comes in ones and twos, each of which would cost a trip.
        """
        if self.channel.rest or self.channel.is_busy():
            return False
        room = self.can_consume_max_estimate()
        enough = max(1, self.prefetch_count // 16) if self._acknowledged else 1
        return room is None or room >= enough

    def take(
        self, client: Any, key: str, queue: str, item: bytes, most: int
    ) -> list[dict[str, Any]]:
        """Note this first message of a queue, and fetch more of it within the prefetch window.

        Parameters:
            client: of Redis.
            key: the list that it was popped from: the queue's, for one of its priorities.
            queue: its name.
            item: the message, as it was there.
            most: how many messages in all.

        Returns:
            What Kombu makes messages from, the first one first.
        """
        if self._script is None or self._script.registered_client is not client:
            self._script = client.register_script(_TAKE)
        room = self.can_consume_max_estimate()
        count = most if room is None else max(1, min(room, most))
        first, last = self._next_tag, self._next_tag + count - 1
        self._next_tag = last + 1
        name = json.dumps(queue).encode()
        found = self._script(
            [key, self.unacked_key, self.unacked_index_key],
            [
                *(item, first, last, self._tag_prefix, b',"",' + name + b"]", time.time()),
                MAX_FETCHED_BYTES,
            ],
        )
        payloads = []
        for noted_as, each in zip(found[::2], found[1::2], strict=True):
            tag = bytes_to_str(noted_as)
            payload, wrapped = payload_of(each, queue)
            if wrapped:
                client.hset(self.unacked_key, tag, _note(wrap(each, queue), name))
            payload["properties"]["delivery_tag"] = tag
            self.noted.add(tag)
            payloads.append(payload)
        return payloads

    def append(self, message: Any, delivery_tag: str) -> None:
        """Take a message into the prefetch window."""
        if delivery_tag in self.noted:
            self.noted.remove(delivery_tag)
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge it soon."""
        virtual.QoS.ack(self, delivery_tag)
        self._acknowledged.append(delivery_tag)
        loop = self.channel.loop
        if loop is not None and not self._is_due:
            self._is_due = True
            loop.call_later(GATHER_SECONDS, self._flush_when_due, loop)
        if loop is None or len(self._acknowledged) >= MAX_GATHERED:
            self.flush()

    def _flush_when_due(self, loop: Any) -> None:
        self._is_due = False
        try:
            self.flush()
        except ResponseError:
            # Redis may be unable to write at this moment: it has no replica, or its disk is full.
            self._is_due = True
            loop.call_later(AGAIN_SECONDS, self._flush_when_due, loop)
            raise

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put it back at once, or drop it soon."""
        if requeue:
            super().reject(delivery_tag, requeue=True)
        else:
            self.ack(delivery_tag)

    def flush(self) -> None:
        """Acknowledge now."""
        if not (done := list(self._acknowledged)):
            return
        with self.channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            pipe.zrem(self.unacked_index_key, *done)
            pipe.hdel(self.unacked_key, *done)
            pipe.execute()
        # Only now: if the connection was lost, the channel's end tries once more.
        del self._acknowledged[: len(done)]

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back; what is not a message of Kombu's is wrapped as one first."""
        with self.channel.conn_or_acquire(client) as own:
            note = own.hget(self.unacked_key, tag) or b""
            item, ours, queue = note[1:-1].rpartition(b',"",')
            if ours and payload_of(item, json.loads(queue))[1]:
                own.hset(self.unacked_key, tag, _note(wrap(item, json.loads(queue)), queue))
        super().restore_by_tag(tag, client, leftmost)


def _note(item: bytes, queue: bytes) -> bytes:
    return b"[" + item + b',"",' + queue + b"]"
