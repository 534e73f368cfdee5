"""Ten thousand messages that nobody should send: no worker dies, and each is accounted for."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from sqlalchemy import Engine

from cos_events import broker
from cos_events.cli.processes import check_alive, running, worker
from cos_events.envelope import Envelope
from cos_events.errors import InvalidEnvelope
from cos_events.pubsub import get_redis_client_sync, skipped_messages, subscribe_to_channel

MESSAGES = 2_500
APP = "tests.apps.busapp"

GOOD: dict[str, Any] = {
    "base_log_id": "01a20832-7046-7547-9a20-11afda7256be",
    "source_module": "cc",
    "timestamp": "2026-01-01T00:00:00.000000Z",
    "trace_id": "t",
    "request_id": "r",
    "event_type": "event_log",
    "data": {},
}


def messages(seed: int) -> Iterator[bytes]:
    """Bytes, wrong types, deep nesting, huge numbers, missing and extra fields: no envelopes."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets

    def changed(**fields: object) -> bytes:
        return json.dumps({**GOOD, **fields}).encode()

    odd: list[object] = [None, True, 0, -1, 1.5, [], {}, [[]], {"": None}, 10**400]
    fields = [name for name in GOOD if name != "data"]
    kinds: list[Callable[[], bytes]] = [
        lambda: chance.randbytes(chance.randrange(1, 300)),
        lambda: changed(**{chance.choice(fields): chance.choice(odd)}),
        lambda: changed(data=chance.choice([None, 1, "x", [1]])),
        lambda: changed(**{f"extra{chance.randrange(99)}": chance.choice(odd)}),
        lambda: json.dumps(
            dict(list(GOOD.items())[: chance.randrange(len(GOOD))]), sort_keys=True
        ).encode(),
        lambda: b"[" * (depth := chance.choice([10, 1_000, 50_000])) + b"]" * depth,
        lambda: changed(timestamp=int("9" * 4_000)),
        lambda: changed(data={"n": 1})[:-2] + b"e" + b"9" * 5_000 + b"}}",
        lambda: changed(data={"a": float("nan")}),
        lambda: changed(data={"a": float("inf")}),
        lambda: json.dumps(chance.choice(odd)).encode(),
        lambda: changed()[: chance.randrange(1, 100)],
        lambda: changed(timestamp=f"{chance.randrange(10**6)}-13-99"),
        lambda: b"\xff\xfe" + changed(),
    ]
    while True:
        yield chance.choice(kinds)()


def throw(queue: str, count: int, seed: int) -> None:
    """Send so many to a queue, with content types and headers that lie."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    made = messages(seed)
    raw = None if broker.on_rabbitmq() else Redis.from_url(broker.broker_url())
    with broker.connect() as connection:
        producer = connection.Producer(auto_declare=False)
        for _ in range(count):
            body = next(made)
            if raw is not None and chance.random() < 0.5:
                raw.lpush(queue, body)
                continue
            producer.publish(
                body,
                routing_key=queue,
                content_type=chance.choice(
                    ["application/json", "application/octet-stream", "application/x-nothing"]
                ),
                content_encoding=chance.choice(["utf-8", "binary"]),
                headers=chance.choice(
                    [
                        {},
                        {"task": queue},
                        {"task": queue, "id": 7, "retries": "x", "eta": "never"},
                        {"traceparent": "00-nothing"},
                        {"cos_events_redelivered": True},
                    ]
                ),
                retry=False,
            )
    if raw is not None:
        raw.close()


def test_no_message_ends_a_worker_and_each_is_among_the_dead_letters(
    database: Engine,
    broker_url: str,
    environment: Callable[..., None],
    unique: Callable[[str], str],
    clean_queues: list[str],
    tmp_path: Path,
    eventually: Callable[..., None],
) -> None:
    prefix = unique("fuzz")
    environment(
        BUSAPP_PREFIX=prefix, COS_EVENTS_MODULE=prefix, PYTHONPATH=str(Path(__file__).parents[2])
    )
    name = f"{prefix}_batch"
    clean_queues += [name, f"{name}.dlq"]

    def buried() -> int:
        return broker.queue_depths([f"{name}.dlq"]).get(f"{name}.dlq", 0)

    with running(tmp_path, [worker("fuzzed", "subscriber", name, "-A", APP)]) as started:
        throw(name, MESSAGES, seed=1)
        eventually(lambda: check_alive(started) or buried() >= MESSAGES)
        eventually(lambda: not broker.queue_depths([name]).get(name))
        check_alive(started)
        assert buried() == MESSAGES


def test_no_message_ends_a_listener_and_each_is_heard_or_counted(
    database: Engine, unique: Callable[[str], str]
) -> None:
    channel = f"mem0.recorded.{unique('fuzz')}"
    made = messages(seed=2)
    sent = [next(made) for _ in range(2 * MESSAGES)]

    async def listen() -> int:
        ready, heard = asyncio.Event(), 0
        last = f'"{uuid4()}"'

        async def follow() -> None:
            nonlocal heard
            async for message in subscribe_to_channel(channel, on_subscribed=ready.set):
                if message.data == last:
                    return
                heard += 1

        following = asyncio.create_task(follow())
        await ready.wait()
        client = get_redis_client_sync()
        for start in range(0, len(sent), 100):
            with client.pipeline(transaction=False) as pipeline:
                for body in sent[start : start + 100]:
                    pipeline.publish(channel, body)
                await asyncio.to_thread(pipeline.execute)
        await asyncio.to_thread(client.publish, channel, last)
        await asyncio.wait_for(following, 60)
        return heard

    heard = asyncio.run(listen())
    assert heard + skipped_messages()[channel] == len(sent)
    assert 0 < heard < len(sent), "some are JSON, some are not"


@pytest.mark.parametrize("seed", range(3))
def test_the_generator_makes_no_envelope(seed: int) -> None:
    made = messages(seed)
    for _ in range(300):
        with pytest.raises(InvalidEnvelope):
            Envelope.decode(next(made))
