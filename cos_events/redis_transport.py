"""Kombu's Redis transport, with fewer trips to Redis for each message.

Kombu's own takes three for each: it pops the message, notes it among the unacknowledged, and
removes it again; and it makes a client for each of these. Here one client serves them all, what
else waits in a queue is popped along with the first message, within the prefetch window, and
acknowledgements are sent together, at most `GATHER_SECONDS` late. Names and formats of the keys are
Kombu's, so workers with either transport may share a Redis.

For any Celery application: import this module, and give `broker_url` the scheme `redis-batch://`
(`rediss-batch://` for TLS); or keep the URL and set `broker_transport` to one of these. Without
`ssl_cert_reqs` a TLS server's certificate is checked. Sentinel and Cluster are refused.

What is popped is noted among the unacknowledged in the same script, so that a killed worker loses
none of it, except the first message of a fetch, which BRPOP takes, as with Kombu's own. What is
consumed without acknowledgement comes many at once in a worker's loop, and in one trip if it
consumes nothing else (BLMPOP, since Redis 7); a worker that is killed then loses what it has not
run.

This relies on private parts of Kombu: `Channel._brpop_start` and `_brpop_read` and what they use
(`_queue_cycle`, `_q_for_pri`, `_in_poll`, `_brpop_sent_at`, `_flush_brpop_reauth`, `_closing`),
`_get`, `_maybe_update_queues_expire`, `_handle_message`, `conn_or_acquire`, `_disconnect_pools` and
`_do_restore_message`, and those that `redis_unacked` names. Tests run each of them on a real
server.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty
from typing import Any

from kombu.exceptions import KombuError
from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.utils.encoding import bytes_to_str
from redis.exceptions import RedisError, ResponseError

from cos_events.printable import printable
from cos_events.redis_guard import payload_of
from cos_events.redis_unacked import GATHER_SECONDS, QoS

logger = logging.getLogger(__name__)

# The stubs know too little of these classes.
_redis: Any = redis

NAME, TLS_NAME = "redis-batch", "rediss-batch"
"""For Celery's `broker_transport`, Kombu's `transport`, or as the scheme of a URL."""

MAX_FETCH = 100
"""The most messages of one fetch."""


class Channel(_redis.Channel):  # type: ignore[misc]
    """Fetches what waits, through one client."""

    QoS = QoS
    receives_garbage = True
    """What is not a message of Kombu's is delivered as one, with its bytes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._shared: Any = None
        self._to_acknowledge: set[str] = set()
        self.no_ack_consumers: set[str] = set()
        """Tags of consumers whose messages Kombu lets be acknowledged to no effect."""
        self.is_busy: Callable[[], bool] = lambda: False
        """Whether what still waits should stay in Redis: what is not acknowledged has no prefetch
        window."""
        self._knows_blmpop = True
        self._command = "BRPOP"
        self.rest: list[tuple[str, dict[str, Any]]] = []
        """What was fetched and is still to be delivered, the last first, with its queue."""
        super().__init__(*args, **kwargs)
        if not self.connection.is_known:
            self._refuse_cluster()
            self.connection.is_known = True

    def _refuse_cluster(self) -> None:
        # Where asking is not allowed, any server is accepted.
        with suppress(ResponseError):
            if self._client().info("cluster").get("cluster_enabled"):
                self._disconnect_pools()
                raise KombuError(
                    "cos_events.redis_transport does not support Redis Cluster, nor does Kombu: "
                    "give the broker a Redis without cluster mode"
                )

    @property
    def loop(self) -> Any:
        """The worker's event loop, if there is one: a closed channel has no connection any more."""
        return getattr(self.connection, "loop", None)

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """The client for everything but waiting."""
        yield client or self._client()

    def _client(self) -> Any:
        # A fork, or a lost connection, makes a new pool.
        if self._shared is None or self._shared.connection_pool is not self.pool:
            self._shared = self._create_client()
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

        In a worker's loop only: others may take one, and leave the rest to the next.
        """
        return self.loop is not None and self.ack_emulation

    def close(self) -> None:
        """Acknowledge what is done, and put back what is not."""
        if not self.closed and isinstance(self._qos, QoS):
            try:
                self._qos.flush()
                self._put_back_rest()
            except self.connection_errors:
                # What is noted will be delivered again; what is not acknowledged is lost.
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

    def _handle_message(self, client: Any, reply: Any) -> dict[str, Any]:
        """What a fanout exchange brings: Kombu ignores what has no data."""
        message: dict[str, Any] = super()._handle_message(client, reply)
        if isinstance(message["data"], bytes) and payload_of(message["data"], "")[1]:
            logger.warning(
                "%d bytes on %s that are not a message of Kombu's were dropped",
                *(len(message["data"]), printable(bytes_to_str(message["channel"]))),
            )
            message["data"] = b""
        return message

    def _get(self, queue: str) -> dict[str, Any]:
        """One message, for whoever asks for one."""
        with self.conn_or_acquire() as client:
            self._maybe_update_queues_expire(client, queue)
            for priority in self.priority_steps:
                if item := client.rpop(self._q_for_pri(queue, priority)):
                    return payload_of(item, queue)[0]
        raise Empty

    def _fetch(self, key: str, queue: str, item: bytes) -> list[dict[str, Any]]:
        if queue not in self._to_acknowledge:
            items = [item, *(self._pop(key) if self._command == "BRPOP" else ())]
            return [payload_of(each, queue)[0] for each in items]
        if self.global_keyprefix or not self.ack_emulation:
            return [payload_of(item, queue)[0]]
        most = 1 if self._closing else MAX_FETCH
        found: list[dict[str, Any]] = self.qos.take(self._client(), key, queue, item, most)
        return found

    def _pop(self, key: str) -> list[bytes]:
        """More of what is not acknowledged, after the first message, which must not be lost."""
        if self._takes_many():
            with suppress(RedisError):
                return self._client().rpop(key, MAX_FETCH - 1) or []
        return []

    def _deliver_rest(self) -> None:
        """Deliver what was fetched; if a task runs meanwhile, the loop gets turns in between."""
        loop = self.loop
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
        # The last one first, so that they are in the same order again.
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
            # Kombu does so only for its own scheme, and without checking the certificate.
            client.ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        super().__init__(client, **kwargs)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """A worker's loop: acknowledgements may wait for others now."""
        self.loop = loop
        super().register_with_event_loop(connection, loop)


for _name in (NAME, TLS_NAME):
    TRANSPORT_ALIASES.setdefault(_name, f"{__name__}:Transport")
