"""Kombu's Redis transport, with fewer trips to Redis for each message.

Kombu's own takes three for each: it pops it, notes it among the unacknowledged, and takes it off
again; and it makes a client for each of these. Here one client serves them all, what else waits in
a queue is popped along with the first message, within the prefetch window, and acknowledgements go
together, at most `GATHER_SECONDS` late. Names and forms of the keys are Kombu's, so workers with
either transport may share a Redis.

For any Celery application: import this module, and give `broker_url` the scheme `redis-batch://`
(`rediss-batch://` for TLS); or keep the URL and set `broker_transport` to one of these. Without
`ssl_cert_reqs` a TLS server's certificate is checked. Sentinel and Cluster are refused.

What is popped is noted among the unacknowledged in the same script, so that a killed worker loses
none of it; but for the first message of a fetch, which BRPOP takes, as with Kombu's own. What is
consumed without acknowledgement comes as many at once in a worker's loop, and in one trip if all is
(BLMPOP, since Redis 7); a worker that is killed then loses what it has not run.

Private of Kombu is what this stands on: `Channel._brpop_start` and `_brpop_read` and what they use
(`_queue_cycle`, `_q_for_pri`, `_in_poll`, `_brpop_sent_at`, `_flush_brpop_reauth`, `_closing`),
`QoS.unacked_key` and `unacked_index_key`, `conn_or_acquire`, `_disconnect_pools`,
`_do_restore_message`, and that `QoS.restore_by_tag` reads `[message, exchange, routing key]`. Tests
run each of them on a real server.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty
from typing import Any

from kombu.exceptions import KombuError
from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.uuid import uuid
from redis.exceptions import RedisError, ResponseError

from cos_events.redis_guard import payload_of, wrap

# The stubs know too little of these classes.
_redis: Any = redis

NAME, TLS_NAME = "redis-batch", "rediss-batch"
"""For Celery's `broker_transport`, Kombu's `transport`, or as the scheme of a URL."""

MAX_FETCH = 100
"""The most messages of one fetch."""

GATHER_SECONDS = 0.02
"""At most so long an acknowledgement waits for others."""

AGAIN_SECONDS = 1.0
"""After a refusal acknowledgements are tried again."""

MAX_GATHERED = 100
"""So many acknowledgements go at once."""

MAX_FETCHED_BYTES = 1 << 20
"""So many bytes end a fetch of what is acknowledged: Redis serves nobody else meanwhile."""

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
"""Notes the message at hand among the unacknowledged, then pops and notes more of the queue.

By the tag that the message itself brings, as Kombu does: then the acknowledgement of a task that
ran longer than the visibility timeout takes off the copy too, and a script that is sent twice
forgets nothing. Where that is not to be found at a glance, by one of this channel's.
"""


class QoS(_redis.QoS):  # type: ignore[misc]
    """Unacknowledged messages: noted by the fetch, taken off together."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.noted: set[str] = set()
        self._acknowledged: list[str] = []
        self._is_due = False

    def can_consume(self) -> bool:
        """Whether there is room, and enough for a fetch; while acknowledgements gather, room does.

        In a prefork worker it comes by ones and twos, each of which would cost a trip.
        """
        if self.channel.rest or self.channel.is_busy():
            return False
        room = self.can_consume_max_estimate()
        enough = max(1, self.prefetch_count // 16) if self._acknowledged else 1
        return room is None or room >= enough

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
        # A closed channel has no connection any more.
        loop = getattr(self.channel.connection, "loop", None)
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
            # Redis may not write at this moment: it has no replica, or its disk is full.
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
        """Put a message back; what is no message of Kombu's is wrapped as one first."""
        with self.channel.conn_or_acquire(client) as own:
            note = own.hget(self.unacked_key, tag) or b""
            item, ours, queue = note[1:-1].rpartition(b',"",')
            if ours and payload_of(item, json.loads(queue))[1]:
                own.hset(self.unacked_key, tag, _note(wrap(item, json.loads(queue)), queue))
        super().restore_by_tag(tag, client, leftmost)


def _note(item: bytes, queue: bytes) -> bytes:
    return b"[" + item + b',"",' + queue + b"]"


class Channel(_redis.Channel):  # type: ignore[misc]
    """Fetches what waits, through one client."""

    QoS = QoS
    receives_garbage = True
    """What is no message of Kombu's is delivered as one, with its bytes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._shared: Any = None
        self._to_acknowledge: set[str] = set()
        self.no_ack_consumers: set[str] = set()
        """Tags of consumers whose messages Kombu lets be acknowledged without a word."""
        self.is_busy: Callable[[], bool] = lambda: False
        """Whether what still waits shall wait in Redis: what is not acknowledged has no prefetch
        window."""
        self._knows_blmpop = True
        self._command = "BRPOP"
        self.rest: list[tuple[str, dict[str, Any]]] = []
        """What was fetched and is still to be delivered, the last first, with its queue."""
        self._tag_prefix = f"{uuid()}."
        self._next_tag = 0
        super().__init__(*args, **kwargs)
        if not self.connection.is_known:
            self._refuse_cluster()
            self.connection.is_known = True

    def _refuse_cluster(self) -> None:
        # Where nobody may ask, any server is let in.
        with suppress(ResponseError):
            if self._client().info("cluster").get("cluster_enabled"):
                self._disconnect_pools()
                raise KombuError(
                    "cos_events.redis_transport does not support Redis Cluster, nor does Kombu: "
                    "give the broker a Redis without cluster mode"
                )

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """The client for everything but waiting."""
        yield client or self._client()

    def _client(self) -> Any:
        # A fork, or a lost connection, makes a new pool.
        if self._shared is None or self._shared.connection_pool is not self.pool:
            self._shared = self._create_client()
            self._take = self._shared.register_script(_TAKE)
        return self._shared

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any
    ) -> Any:
        """Start to consume a queue."""
        (self._to_acknowledge.discard if no_ack else self._to_acknowledge.add)(queue)
        (self.no_ack_consumers.add if no_ack else self.no_ack_consumers.discard)(consumer_tag)

        def tagged(message: Any) -> Any:
            message.delivery_info["consumer_tag"] = consumer_tag
            return callback(message)

        return super().basic_consume(
            queue, no_ack, tagged if no_ack else callback, consumer_tag, **kwargs
        )

    def _brpop_start(self, timeout: float | None = None) -> None:
        knows = self._knows_blmpop and not self.global_keyprefix
        if self._to_acknowledge or not (knows and self._takes_many()):
            self._command = "BRPOP"
            super()._brpop_start(timeout)
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        keys = [self._q_for_pri(each, step) for step in self.priority_steps for each in queues]
        if not keys:
            return
        self._command = "BLMPOP"
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        seconds = timeout or self.brpop_timeout or 0
        self.client.connection.send_command(
            *("BLMPOP", seconds, len(keys), *keys, "RIGHT", "COUNT", MAX_FETCH)
        )

    def _takes_many(self) -> bool:
        """Whether more than one unacknowledged message may come at once.

        In a worker's loop: anyone else may take one, and leave the others to the next.
        """
        return getattr(self.connection, "loop", None) is not None and self.ack_emulation

    def close(self) -> None:
        """Acknowledge what is done, and put back what is not."""
        if not self.closed and isinstance(self._qos, QoS):
            try:
                self._qos.flush()
                self._put_back_rest()
            except self.connection_errors:
                # It will be delivered again.
                self._closing = True
        super().close()

    def _brpop_read(self, **options: Any) -> bool:
        try:
            try:
                reply = self.client.parse_response(self.client.connection, self._command, **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            except ResponseError:
                if self._command == "BRPOP":
                    raise
                # Redis 6 does not know it, or this user may not; if it is something else, BRPOP
                # will say so.
                self._knows_blmpop = False
                reply = None
            if not reply:
                raise Empty
            # Text: a client with a prefix would make text of bytes otherwise.
            key = bytes_to_str(reply[0])
            items = reply[1] if self._command == "BLMPOP" else reply[1:]
            queue = key.rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            if self._closing and queue not in self._to_acknowledge:
                self._client().rpush(key, *reversed(items))
                raise Empty
            fetched = [each for item in items for each in self._fetch(key, queue, item)]
            self.rest = [(queue, each) for each in reversed(fetched)]
            self._deliver_rest()
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _fetch(self, key: str, queue: str, item: bytes) -> list[dict[str, Any]]:
        if queue not in self._to_acknowledge:
            items = [item, *(self._pop(key) if self._command == "BRPOP" else ())]
            return [payload_of(each, queue)[0] for each in items]
        if self.global_keyprefix or not self.ack_emulation:
            return [payload_of(item, queue)[0]]
        room = self.qos.can_consume_max_estimate()
        count = MAX_FETCH if room is None else max(1, min(room, MAX_FETCH))
        first, last = self._next_tag, self._next_tag + (1 if self._closing else count) - 1
        self._next_tag = last + 1
        client, name = self._client(), json.dumps(queue).encode()
        items = self._take(
            [key, self.unacked_key, self.unacked_index_key],
            [
                *(item, first, last, self._tag_prefix, b',"",' + name + b"]", time.time()),
                MAX_FETCHED_BYTES,
            ],
            client=client,
        )
        payloads = []
        for noted_as, each in zip(items[::2], items[1::2], strict=True):
            tag = bytes_to_str(noted_as)
            payload, wrapped = payload_of(each, queue)
            if wrapped:
                client.hset(self.unacked_key, tag, _note(wrap(each, queue), name))
            payload["properties"]["delivery_tag"] = tag
            self.qos.noted.add(tag)
            payloads.append(payload)
        return payloads

    def _pop(self, key: str) -> list[bytes]:
        """More of what is not acknowledged, beside the first message, which must not be lost."""
        if self._takes_many():
            with suppress(RedisError):
                return self._client().rpop(key, MAX_FETCH - 1) or []
        return []

    def _deliver_rest(self) -> None:
        """Deliver what was fetched; where a task runs meanwhile, the loop gets turns in between."""
        loop = getattr(self.connection, "loop", None)
        try:
            while self.rest:
                begun = time.monotonic()
                queue, payload = self.rest.pop()
                self.connection._deliver(payload, queue)  # noqa: SLF001 - as Kombu's own does
                if loop is not None and time.monotonic() - begun > GATHER_SECONDS:
                    loop.call_later(0, self._go_on)
                    return
        except BaseException:
            self._put_back_rest()
            raise

    def _go_on(self) -> None:
        if not self.closed:
            self._deliver_rest()

    def _put_back_rest(self) -> None:
        # The last one first, so that they stand as they stood.
        rest, self.rest = self.rest, []
        for queue, payload in rest:
            tag = payload["properties"]["delivery_tag"]
            if tag in self.qos.noted:
                self.qos.noted.remove(tag)
                self.qos.restore_by_tag(tag)
            elif queue not in self._to_acknowledge:
                self._do_restore_message(payload, "", queue, self._client())


class Transport(_redis.Transport):  # type: ignore[misc]
    """The transport, for `broker_transport`."""

    Channel = Channel
    loop: Any = None
    is_known = False
    """Whether its server has been asked what it is."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        if "master_name" in client.transport_options:
            raise KombuError(
                "cos_events.redis_transport does not support Redis Sentinel: "
                "use sentinel:// and leave broker_transport alone"
            )
        if client.transport_cls == TLS_NAME and not client.ssl:
            # Kombu does so for its own scheme alone, and without a look at the certificate.
            client.ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        super().__init__(client, **kwargs)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """A worker's loop: acknowledgements may wait for others now."""
        self.loop = loop
        super().register_with_event_loop(connection, loop)


for _name in (NAME, TLS_NAME):
    TRANSPORT_ALIASES.setdefault(_name, f"{__name__}:Transport")
