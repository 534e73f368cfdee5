"""One trace, from the request through both hops to each subscriber and its retries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from celery.contrib.testing.worker import start_worker
from opentelemetry import trace
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from cos_events import Envelope, Rejected, record_event
from cos_events.broadcast import Copy, make_broadcaster, send_to_queue
from cos_events.errors import BroadcastError
from cos_events.publisher import Publisher
from cos_events.telemetry import TraceRequests, names

if TYPE_CHECKING:
    from conftest import Bus, InMemory

AT_ONCE = {"retry_backoff": False, "default_retry_delay": 0}
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PROMPT = "words of a prompt"
TREE = """\
POST /orders
  commit: committed
    publish
      broadcast
      consume activity: delivered
        attempt activity
      consume archive: Rejected
        attempt archive: Rejected
        dead letter archive
      consume mailer: ConnectionError
        attempt mailer: ConnectionError
        retry mailer
          consume mailer: delivered
            attempt mailer
"""


@contextmanager
def worker(bus: Bus) -> Iterator[None]:
    """A worker of the application, in this process."""
    bus.app.conf.broker_heartbeat = 2  # on RabbitMQ its loop turns only when something happens
    with start_worker(
        bus.app, pool="solo", perform_ping_check=False, queues=bus.names, loglevel="WARNING"
    ):
        yield


@pytest.fixture
def publish(database: Engine) -> Iterator[Callable[[], int]]:
    """Publish what waits."""
    broadcaster = make_broadcaster()
    yield Publisher(database, broadcaster).publish
    broadcaster.close()


@pytest.fixture
def request_events(bus: Bus, database: Engine) -> Callable[..., None]:
    """An HTTP request whose application commits events."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        pass

    async def application(scope: dict[str, Any], _receive: Any, send: Any) -> None:
        scope["route"] = type("Route", (), {"path": "/orders"})
        with Session(database) as session:
            record_event(session, "order_placed", {"prompt": PROMPT}, module=bus.module)
            session.commit()
        await send({"type": "http.response.start", "status": 201, "headers": []})

    def ask() -> None:
        scope = {"type": "http", "method": "POST", "path": "/orders", "headers": []}
        asyncio.run(TraceRequests(application)(scope, receive, send))

    return ask


def test_one_trace_leads_from_the_request_to_each_subscriber_and_its_retries(
    bus: Bus, traces: InMemory, request_events, publish, eventually
) -> None:
    failures = [ConnectionError(f"the mail server restarts: {PROMPT}")]

    def mailer(message: Envelope) -> None:
        if failures:
            raise failures.pop()

    def archive(message: Envelope) -> None:
        raise Rejected(f"the archive does not know this kind of event: {PROMPT}")

    def activity(messages: list[Envelope], session: Session) -> None:
        pass

    called = {
        bus.declare(mailer, **AT_ONCE): "mailer",
        bus.declare(archive): "archive",
        bus.declare(activity, batch_size=10, batch_timeout=0.01): "activity",
    }
    request_events()
    publish()
    with worker(bus):
        eventually(lambda: len(traces.spans("consume")) == 4)
    assert traces.tree(called) == TREE
    assert len({span.trace_id for span in traces.spans()}) == 1
    assert PROMPT not in str(traces.spans()), "nor is what an event holds in any span"
    number = [each.attributes[names.ATTEMPT_NUMBER] for each in traces.spans("attempt")]
    assert sorted(number) == [1, 1, 1, 2]


def test_work_for_several_traces_is_a_span_in_each_and_links_to_all(
    bus: Bus, traces: InMemory, request_events, publish, eventually
) -> None:
    bus.declare(lambda messages, session: None, batch_size=2, batch_timeout=30)
    request_events()
    request_events()
    publish()
    with worker(bus):
        eventually(lambda: len(traces.spans("consume")) == 2)
    requests = {span.trace_id for span in traces.spans("POST")}
    assert len(requests) == 2
    for name, merged in (("publish", "broadcast"), ("consume", "attempt")):
        assert {span.trace_id for span in traces.spans(name)} == requests
        assert set(traces.one(merged).links) == {span.span_id for span in traces.spans(name)}
        assert traces.one(merged).parent_id == ""


def test_a_message_of_a_batch_that_fails_alone_has_its_own_outcome(
    bus: Bus, traces: InMemory, publish, eventually
) -> None:
    def handle(messages: list[Envelope]) -> None:
        if any(message.event_type == "bad" for message in messages):
            raise Rejected

    bus.declare(handle, batch_size=3, batch_timeout=30)
    for event_type in ("good", "bad", "better"):
        with traces.tracer.start_as_current_span(event_type):
            bus.record(event_type)
    publish()
    with worker(bus):
        eventually(lambda: len(traces.spans("consume")) == 3)
    told = {span.trace_id: span.told for span in traces.spans("consume")}
    assert {name: told[traces.one(name).trace_id] for name in ("good", "bad", "better")} == {
        "good": "delivered",
        "bad": "Rejected",
        "better": "delivered",
    }
    assert traces.one("dead letter").trace_id == traces.one("bad").trace_id


def test_a_publisher_and_a_worker_that_do_not_trace_hand_the_context_on(
    bus: Bus, traces: InMemory, publish, eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Envelope] = []

    def handle(message: Envelope) -> None:
        calls.append(message)
        if len(calls) == 2:
            monkeypatch.setattr(trace, "_TRACER_PROVIDER", traces.provider)
        raise ConnectionError

    bus.declare(handle, max_retries=2, **AT_ONCE)
    bus.record()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    publish()
    with worker(bus):
        eventually(lambda: traces.spans("dead letter"))
    assert not traces.spans("publish")
    assert traces.one("retry").parent_id == traces.one("commit").span_id


def test_a_batch_that_the_broker_refuses_leaves_few_spans(
    bus: Bus, traces: InMemory, database: Engine
) -> None:
    class Away:
        def open(self) -> None:
            pass

        def broadcast(self, *_: Any) -> None:
            raise BroadcastError("away")

    away: Any = Away()
    for _ in range(12):
        bus.record()
    with pytest.raises(BroadcastError):
        Publisher(database, away).publish()
    assert [span.told for span in traces.spans("publish")] == ["BroadcastError"] * 10
    bus.record()
    with pytest.raises(BroadcastError):
        Publisher(database, away).publish(limit=1)
    assert len(traces.spans("publish")) == 11


def test_content_is_traced_only_where_it_is_asked_for(
    bus: Bus, traces: InMemory, request_events, publish, eventually, environment
) -> None:
    def handle(message: Envelope) -> None:
        raise Rejected(f"no such kind: {PROMPT}")

    environment(COS_EVENTS_TRACE_CONTENT="true")
    bus.declare(handle)
    request_events()
    publish()
    with worker(bus):
        eventually(lambda: traces.spans("consume"))
    (raw,) = traces.one("consume").attributes[names.CONTENT]
    assert Envelope.decode(raw).data == {"prompt": PROMPT}
    assert f"no such kind: {PROMPT}" in traces.one("attempt").everything


def test_bytes_that_are_no_envelope_are_traced_to_their_dead_letter(
    bus: Bus, traces: InMemory, eventually
) -> None:
    name = bus.declare(lambda message: None)
    send_to_queue(name, [Copy("rubbish", traceparent=CALLER)])
    with worker(bus):
        eventually(lambda: traces.spans("consume"))
    consume, letter = traces.one("consume"), traces.one("dead letter")
    assert (consume.told, letter.parent_id) == ("unusable", consume.span_id)
    assert [consume.trace_id, consume.parent_id] == CALLER.split("-")[1:3]
