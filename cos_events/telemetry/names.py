"""Every name under which the bus tells what it does: spans, their attributes, metrics, loggers.

`docs/telemetry.md` shows them as tables; a test compares it with this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["internal", "server", "client", "producer", "consumer"]


@dataclass(frozen=True, slots=True)
class SpanName:
    """What a span is called, and its OpenTelemetry kind."""

    name: str
    kind: Kind


RECORD = SpanName("record", "internal")
"""One batch of `cos-events record`, which is one transaction."""
COMMIT = SpanName("commit", "internal")
"""From the first event recorded in a transaction to its end."""
PUBLISH = SpanName("publish", "producer")
"""From the claim of a batch until it is marked; one in each trace."""
BROADCAST = SpanName("broadcast", "producer")
"""A batch onto the broker and the channel."""
CONSUME = SpanName("consume", "consumer")
"""One delivery of a subscription: decoding, attempts, what follows; one in each trace."""
ATTEMPT = SpanName("attempt", "internal")
"""One call of a subscription's handler, with its delivery rows."""
RETRY = SpanName("retry", "producer")
"""Sending the copy that runs next."""
DEAD_LETTER = SpanName("dead letter", "producer")
"""Putting an envelope onto the dead-letter queue."""

OUTCOME = "cos_events.outcome"
"""For a commit `committed`, `rolled back` or `joined` (to an outer transaction, which decides); for
a delivery `delivered` or `failed`; for anything else that failed, `failed`."""
ATTEMPT_NUMBER = "cos_events.attempt"
"""Which attempt it is, from 1."""
RETRY_AFTER = "cos_events.retry_after"
"""Seconds until a retry's copy runs."""
REASON = "cos_events.reason"
"""Why it is a dead letter."""
CONTENT = "cos_events.content"
"""The envelopes themselves; only with `COS_EVENTS_TRACE_CONTENT`."""
COUNT = "messaging.batch.message_count"
"""How many events."""
ERROR_TYPE = "error.type"
"""The exception's class."""
HTTP_METHOD = "http.request.method"
"""`GET`, `POST`, …"""
HTTP_ROUTE = "http.route"
"""The route that answered, with its placeholders."""
HTTP_STATUS = "http.response.status_code"
"""The response's; from 500 on, the request failed."""
STATEMENT = "db.query.text"
"""SQL with placeholders; only with `COS_EVENTS_TRACE_CONTENT`: a handler's may contain values."""
SQLSTATE = "db.response.status_code"
"""PostgreSQL's five characters for what went wrong."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A Prometheus metric: its name, kind, labels and help text."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


COMMITTED = Metric(
    "cos_events_committed_total",
    "counter",
    ("module",),
    "Events whose transaction committed, counted by the process that recorded them.",
)
PUBLISHED = Metric(
    "cos_events_published_total",
    "counter",
    ("module",),
    "Events that went out on the broker.",
)
CHANNEL_MISSED = Metric(
    "cos_events_channel_missed_total",
    "counter",
    (),
    "Events that went out on the broker while the live channel's Redis was down.",
)
DELIVERED = Metric(
    "cos_events_delivered_total",
    "counter",
    ("module", "subscription"),
    "Events that had their effect; a copy that runs nothing is not counted.",
)
RETRIED = Metric(
    "cos_events_retried_total",
    "counter",
    ("module", "subscription"),
    "Failed attempts that are followed by another one.",
)
DEAD = Metric(
    "cos_events_dead_total",
    "counter",
    ("module", "subscription"),
    "Events that became dead letters.",
)
UNUSABLE = Metric(
    "cos_events_unusable_total",
    "counter",
    ("subscription",),
    "Messages that are not an event of this database; they became dead letters too.",
)
HELD = Metric(
    "cos_events_held_total",
    "counter",
    ("module", "subscription"),
    "Copies that were left to wait in PostgreSQL, because the queue was full or paused.",
)
SENT_AGAIN = Metric(
    "cos_events_sent_again_total",
    "counter",
    ("subscription",),
    "Copies that the relay sent again, because the first was lost or its worker was killed.",
)
PUBLISH_LATENCY = Metric(
    "cos_events_publish_latency_seconds",
    "histogram",
    ("module",),
    "Seconds from recording to publication.",
)
DELIVERY_LATENCY = Metric(
    "cos_events_delivery_latency_seconds",
    "histogram",
    ("module", "subscription"),
    "Seconds from recording to delivery, retries and waiting included.",
)
BREAKER_OPEN = Metric(
    "cos_events_breaker_open",
    "gauge",
    ("breaker",),
    "1 while a server that failed is not called.",
)
BREAKER_OPENED = Metric(
    "cos_events_breaker_opened_total",
    "counter",
    ("breaker",),
    "Outages that a circuit breaker saw.",
)
UP = Metric(
    "cos_events_up",
    "gauge",
    ("server",),
    "Whether `postgresql` and the `broker` answered this scrape; what they know is absent if not.",
)
OUTBOX_ROWS = Metric(
    "cos_events_outbox_rows",
    "gauge",
    (),
    "Committed events that are not published yet.",
)
OUTBOX_OLDEST = Metric(
    "cos_events_outbox_oldest_seconds",
    "gauge",
    (),
    "Age of the oldest event that is not published yet; 0 if there is none.",
)
DELIVERIES = Metric(
    "cos_events_deliveries",
    "gauge",
    ("subscription", "state"),
    "Deliveries that are `held`, `retrying` or `dead` right now.",
)
LAG = Metric(
    "cos_events_lag_events",
    "gauge",
    ("subscription",),
    "Committed events that it has yet to receive; dead letters are not counted.",
)
LAG_SECONDS = Metric(
    "cos_events_lag_seconds",
    "gauge",
    ("subscription",),
    "Age of the oldest event that it has yet to receive; 0 if there is none.",
)
PAUSED = Metric(
    "cos_events_paused",
    "gauge",
    ("subscription",),
    "1 while its handler is not called: a person paused it, or what it needs is down.",
)
HOLDING = Metric(
    "cos_events_holding",
    "gauge",
    ("subscription",),
    "1 while its queue is full and new copies wait in PostgreSQL.",
)
QUEUE_DEPTH = Metric(
    "cos_events_queue_depth",
    "gauge",
    ("queue",),
    "Messages that wait on the broker, not counting those that workers hold.",
)

METRICS = tuple(each for each in dict(globals()).values() if isinstance(each, Metric))
"""All of them."""

LOGGERS = {
    "cos_events.api.health": "why /health/ready cannot say how events are",
    "cos_events.app": "a worker on another broker than BROKER_URL names",
    "cos_events.broadcast.bindings": "a queue on RabbitMQ that somebody declared differently",
    "cos_events.broadcast.redis": "a queue's key on Redis that somebody uses for something else",
    "cos_events.capture": "committed events whose wake-up failed, left to the relay",
    "cos_events.circuit_breaker": "each outage of a server, when it begins and when it ends",
    "cos_events.dead_letters.burying": "messages that nobody can deliver, and why",
    "cos_events.dead_letters.on_broker": "copies that may have stayed on a dead-letter queue",
    "cos_events.consumer": "messages dropped unread: not wake-ups, or not Celery's gossip",
    "cos_events.delivery": "a batch that failed, whose messages are tried one by one",
    "cos_events.dispatcher": "wake-ups that were not sent",
    "cos_events.embedded.lifetime": "private servers that others had left behind",
    "cos_events.failure": "attempts that failed, dead letters; what waits while PostgreSQL is down",
    "cos_events.feeder": "a subscription whose copies go to its queue again",
    "cos_events.retention": "events that every subscription has received are dropped",
    "cos_events.metrics": "that PostgreSQL could not be read for a scrape",
    "cos_events.next_turn": "a task that could not be run: a bug of ours",
    "cos_events.ordering": "events that cannot be put in order",
    "cos_events.pause": "a subscription that pauses, and one that resumes",
    "cos_events.publisher": "a queue that is full; a batch that waits",
    "cos_events.pubsub.messages": "bytes on a channel that are not a message",
    "cos_events.pubsub.subscribe": "what a listener may have missed while Redis was down",
    "cos_events.redelivery": "events that were lost and are sent again",
    "cos_events.redis_transport": "bytes on a fanout exchange that are not a message of Kombu's",
    "cos_events.relay": "a sweep that failed",
    "cos_events.store.engine": "a pooler through which each commit waits for the disk",
    "cos_events.store.subscriptions": "a subscription that now wants different events",
    "cos_events.telemetry.counters": "a metric that cannot be counted",
}
"""Each module that logs, and what it logs."""

BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0),
)
"""Of the latency histograms, in seconds: from a quiet loopback to a broker that was down."""
