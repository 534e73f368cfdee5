"""Whatever somebody puts anywhere on the broker: no worker ends, and genuine events go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis import Redis
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from cos_events import broker, record_event
from cos_events.cli.processes import check_alive, running, worker
from cos_events.store.models import DeliveryRow
from cos_events.task_message import EMBED, task_headers
from cos_events.topology import PUBLISH_QUEUE, PUBLISH_TASK

APP = "tests.apps.busapp"

BAD_HEADERS: dict[str, Any] = {
    "stamped_headers": 7,
    "timelimit": [10**18, "x"],
    "retries": 2**31,
    "eta": "9999-12-31T00:00:00+00:00",
    "id": "x]\n[2026-01-01 00:00:00,000: CRITICAL/MainProcess] forged",
    "shadow": {"a": 1},
    "group": {"a": 1},
    "deep": json.loads("[" * 400 + "]" * 400),
}
BAD_BODIES: list[Any] = [7, [1, 2], [["x"], [1], {}], [["x"], {}, None], {"task": 1}]


def put(body: object, queue: str, exchange: str = "", **headers: Any) -> None:
    """Send one message as any program might."""
    with broker.connect() as connection:
        connection.Producer(auto_declare=False).publish(
            body if isinstance(body, bytes) else json.dumps(body),
            exchange=exchange,
            routing_key=queue,
            content_type="application/json",
            content_encoding="utf-8",
            headers=headers,
            retry=False,
        )


def hostile(name: str) -> Iterator[Callable[[], object]]:
    """Each puts one message somewhere."""
    for queue, task in ((name, name), (PUBLISH_QUEUE, PUBLISH_TASK)):
        for key, value in BAD_HEADERS.items():
            headers = {**task_headers(task, str(uuid4()), "(…)"), key: value}
            yield lambda q=queue, h=headers: put([[["no envelope"]], {}, EMBED], q, **h)  # type: ignore[misc]
        for body in BAD_BODIES:
            yield lambda q=queue, t=task, b=body: put(b, q, task=t, id="x")  # type: ignore[misc]
        yield lambda q=queue: put(b"[]", q, task=[1], id=[1])  # type: ignore[misc]
        yield lambda q=queue: put(b"\0" * 9, q, compression="zlib")  # type: ignore[misc]
    if broker.on_rabbitmq():
        yield lambda: put([1], "worker.heartbeat", "celeryev")
        yield lambda: put(b"\xff", "worker.online", "celeryev")
        yield lambda: put(b"\xff", "", "celery.pidbox")
    else:
        for exchange in ("celery.pidbox", "celeryev/worker.heartbeat"):
            for data in (b"[]", b"\xff{", b"{}", b"[" * 100_000):
                yield lambda e=exchange, d=data: publish(e, d)  # type: ignore[misc]


def publish(exchange: str, data: bytes) -> None:
    """On the Redis channel that is a fanout exchange of Kombu's."""
    with Redis.from_url(broker.broker_url()) as client:
        number = client.connection_pool.connection_kwargs.get("db", 0)
        assert client.publish(f"/{number}.{exchange}", data) > 0


def test_no_message_anywhere_ends_a_worker_or_keeps_events_from_their_subscriber(
    database: Engine,
    broker_url: str,
    environment: Callable[..., None],
    unique: Callable[[str], str],
    clean_queues: list[str],
    tmp_path: Path,
    eventually: Callable[..., None],
) -> None:
    prefix = unique("hostile")
    environment(
        BUSAPP_PREFIX=prefix, COS_EVENTS_MODULE=prefix, PYTHONPATH=str(Path(__file__).parents[2])
    )
    name = f"{prefix}_batch"
    clean_queues += [name, f"{name}.dlq"]

    def delivered() -> int:
        with Session(database) as session:
            of_ours = DeliveryRow.subscription == name, DeliveryRow.state == "delivered"
            return session.scalar(select(func.count()).where(*of_ours)) or 0

    with database.begin() as connection:
        connection.execute(text("CREATE TABLE effect (kind text, event_id uuid, pid int)"))
    commands = [
        worker("subscribing", "subscriber", name, "-A", APP),
        worker("publishing", "publisher", "-A", APP),
    ]
    with running(tmp_path, commands) as started:
        for sent, put_one in enumerate(hostile(name)):
            put_one()
            with Session(database) as session, session.begin():
                record_event(session, "event_log", {"n": sent})
            check_alive(started)
        eventually(lambda: check_alive(started) or delivered() == sent + 1)
        check_alive(started)
    for log in tmp_path.glob("*.log"):
        assert "\n[2026-01-01" not in log.read_text(errors="replace")
