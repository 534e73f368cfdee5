"""`/debug`: a record written, what passed, Redis, and who may look."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi.testclient import TestClient
from redis import Redis
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from cos_events import Envelope
from cos_events.api import recent
from cos_events.embedded import EmbeddedValkey
from cos_events.l1 import BaseLog
from cos_events.publisher import Publisher
from cos_events.settings import get_settings
from cos_events.store.models import OutboxRow
from cos_events.topology import channel_name

Connect = Callable[..., TestClient]
TOKEN = "a-token-of-some-length"
PATHS = [("POST", "/debug/test-log"), ("GET", "/debug/redis-health"), ("GET", "/debug/messages")]


def envelope(**fields: object) -> Envelope:
    return Envelope(
        **{
            "base_log_id": uuid4(),
            "source_module": "cc",
            "timestamp": datetime.now(UTC),
            "trace_id": "t",
            "request_id": "r",
            "event_type": "event_log",
            "data": {},
            **fields,
        }
    )


def publish(*envelopes: Envelope) -> None:
    with Redis.from_url(get_settings().redis_url) as client:
        for each in envelopes:
            client.publish(channel_name(each.source_module), each.encode())


@pytest.fixture
def heard(connect: Connect, eventually: Callable[..., None]) -> Callable[..., TestClient]:
    """A client whose API has heard these envelopes."""

    def listen(*envelopes: Envelope) -> TestClient:
        client = connect()

        def arrived() -> bool:
            with Redis.from_url(get_settings().redis_url) as redis:
                return redis.pubsub_numpat() > 0

        eventually(arrived)
        publish(*envelopes)
        last = str(envelopes[-1].base_log_id)
        eventually(lambda: last in client.get("/debug/messages", params={"limit": 1_000}).text)
        return client

    return listen


def test_a_test_log_is_an_l1_record_with_the_requests_id(
    connect: Connect, database: Engine
) -> None:
    answer = connect().post(
        "/debug/test-log", json={"message": "x", "wait": 0}, headers={"X-Request-ID": "req-7"}
    )
    assert answer.status_code == 200
    found = answer.json()
    assert (found["request_id"], found["published"], found["seen_after_ms"]) == (
        "req-7",
        False,
        None,
    )
    with Session(database) as session:
        record = session.get_one(BaseLog, UUID(found["base_log_id"]))
        assert record.request_id == "req-7"
        raw = session.scalars(select(OutboxRow.envelope)).one()
    assert Envelope.decode(raw).request_id == "req-7"


def test_a_test_log_that_is_published_in_time_was_seen_on_the_channel(
    connect: Connect, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cos_events.broadcast import make_broadcaster

    client = connect()
    publisher = Publisher(database, make_broadcaster())
    monkeypatch.setattr("cos_events.capture.wake", lambda ids, _: publisher.publish(ids))
    found = client.post("/debug/test-log", json={"wait": 5}).json()
    assert found["published"] is True
    assert found["seen_after_ms"] < 5_000


def test_a_test_log_waits_for_no_redis_that_does_not_answer(
    connect: Connect,
    valkey: EmbeddedValkey,
    frozen: Callable[[EmbeddedValkey], AbstractContextManager[None]],
) -> None:
    client = connect(REDIS_URL=valkey.url)

    def ask() -> None:
        begun = time.monotonic()
        answers = [client.post("/debug/test-log", json={"wait": 5}) for _ in range(3)]
        assert [each.status_code for each in answers] == [200] * 3
        assert not any(each.json()["published"] for each in answers)
        assert time.monotonic() - begun < 5, "not one of them has waited"

    with frozen(valkey):
        ask()
    valkey.stop()
    ask()


def test_without_a_body_the_defaults_are_written(connect: Connect) -> None:
    assert connect().post("/debug/test-log").status_code == 200


@pytest.mark.parametrize(
    "body", [{"wait": -1}, {"wait": 1e9}, {"message": 7}, {"other": 1}, {"message": "\0"}]
)
def test_a_bad_body_is_refused_with_the_field(connect: Connect, body: dict[str, object]) -> None:
    answer = connect().post("/debug/test-log", json=body)
    assert answer.status_code == 422
    assert next(iter(body)) in answer.text


@pytest.mark.parametrize(
    ("method", "path", "content", "sentence"),
    [
        ("GET", "/debug/messages?limit=hunter2", "", "limit: Input should be a valid integer"),
        ("POST", "/debug/test-log", "{hunter2", "body: JSON decode error"),
        (
            "POST",
            "/debug/test-log",
            '{"wait": 9, "message": 7}',
            "message: Input should be a valid string; wait: Input should be less than",
        ),
    ],
)
def test_bad_input_is_answered_with_one_sentence(
    connect: Connect, method: str, path: str, content: str, sentence: str
) -> None:
    answer = connect().request(
        method, path, content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(sentence)
    assert "hunter2" not in answer.text


def test_messages_are_shown_newest_first_and_narrowed(heard: Callable[..., TestClient]) -> None:
    first = envelope(request_id="one")
    second = envelope(source_module="pem", event_type="prompt_trace")
    client = heard(first, second)

    def ids(**params: object) -> list[str]:
        answer = client.get("/debug/messages", params=params)
        assert answer.status_code == 200
        return [each["envelope"]["base_log_id"] for each in answer.json()]

    mine = {str(first.base_log_id), str(second.base_log_id)}
    assert [each for each in ids() if each in mine] == [
        str(second.base_log_id),
        str(first.base_log_id),
    ]
    assert ids(module="pem", limit=1) == [str(second.base_log_id)]
    assert str(second.base_log_id) in ids(event_type="prompt_trace")
    assert ids(request_id="one") == [str(first.base_log_id)]
    assert client.get("/debug/messages", params={"limit": 0}).status_code == 422


def test_what_is_kept_is_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MOST_BYTES", 250)
    kept = recent.RecentMessages()
    for size in (100, 100, 100):
        kept._keep(recent.Seen(envelope(), datetime.now(UTC), size))
    assert len(kept.newest()) == 2
    kept._keep(recent.Seen(envelope(), datetime.now(UTC), 10_000))
    assert len(kept.newest()) == 1


def test_redis_health_shows_latency_and_the_breaker(connect: Connect) -> None:
    found = connect().get("/debug/redis-health").json()
    assert (found["answers"], found["breaker"], found["max_connections"]) == (True, "closed", 20)
    assert found["latency_ms"] > 0
    assert (found["connections_in_use"], found["connections_idle"]) == (0, 1)
    assert ":***@" in found["url"]


def test_redis_health_of_a_redis_that_is_down_is_an_answer_too(connect: Connect) -> None:
    found = connect(REDIS_URL="redis://:secret@127.0.0.1:1/0").get("/debug/redis-health")
    assert found.status_code == 200
    assert found.json()["answers"] is False
    assert "secret" not in found.text


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_debug_is_closed_in_production_without_a_token(
    connect: Connect, method: str, path: str
) -> None:
    client = connect(COS_EVENTS_ENVIRONMENT="production")
    assert client.request(method, path).status_code == 404
    assert client.get("/openapi.json").status_code == 404


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_debug_is_closed_in_development_to_other_machines(
    connect: Connect, method: str, path: str
) -> None:
    assert connect(host="192.0.2.7").request(method, path).status_code == 404


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded",
        "X-Original-URL",
        "Forwarded",
        "Via",
        "X-Real-IP",
        "CF-Connecting-IP",
    ],
)
def test_debug_is_closed_in_development_to_what_a_proxy_passes_on(
    connect: Connect, header: str
) -> None:
    answer = connect().get("/debug/redis-health", headers={header: "192.0.2.7"})
    assert answer.status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        # A name of its own that its author has had point to this machine.
        {"Host": "evil.example:8000"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil.example@127.0.0.1"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("method", "path"), PATHS)
def test_debug_is_closed_in_development_to_pages_of_others(
    connect: Connect, database: Engine, method: str, path: str, headers: dict[str, str]
) -> None:
    assert connect().request(method, path, headers=headers).status_code == 404
    with Session(database) as session:
        assert session.scalars(select(BaseLog)).all() == []


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST", "127.0.0.1:8000", "[::1]:8000"])
def test_debug_is_open_in_development_to_this_machine_and_to_its_own_pages(
    connect: Connect, host: str
) -> None:
    for headers in ({}, {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}):
        answer = connect().get("/debug/redis-health", headers={"Host": host, **headers})
        assert answer.status_code == 200


@pytest.fixture
def upload() -> Callable[..., tuple[int, str, int]]:
    """Send a body a KiB at a time: the answer's status and text, and how many KiB were read."""

    async def run(client: TestClient, kib: int, headers: dict[str, str]) -> tuple[int, str, int]:
        read = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal read
            for _ in range(kib):
                read += 1
                yield b" " * 1_024

        transport = httpx.ASGITransport(client.app, client=("127.0.0.1", 50_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as sender:
            headers = {"Content-Type": "application/json", **headers}
            answer = await sender.post("/debug/test-log", content=body(), headers=headers)
        return answer.status_code, answer.text, read

    return lambda client, kib, **headers: asyncio.run(run(client, kib, headers))


@pytest.mark.parametrize(("token", "status"), [("", 404), (TOKEN, 401)])
def test_who_may_not_look_is_answered_before_the_body_is_read(
    connect: Connect, upload: Callable[..., tuple[int, str, int]], token: str, status: int
) -> None:
    client = connect(COS_EVENTS_ENVIRONMENT="production", COS_EVENTS_DEBUG_TOKEN=token)
    assert upload(client, 1)[::2] == (status, 0)
    assert upload(client, 1, **{"Content-Length": "999999999"})[::2] == (status, 0)


def test_a_body_larger_than_any_event_is_refused_and_not_read(
    connect: Connect, upload: Callable[..., tuple[int, str, int]]
) -> None:
    client = connect(COS_EVENTS_MAX_PAYLOAD_BYTES="2048")
    refused = '{"detail":"the body is larger than 8,192 bytes"}'
    assert upload(client, 8)[::2] == (422, 8)
    assert upload(client, 100) == (413, refused, 9)
    assert upload(client, 100, **{"Content-Length": "102400"}) == (413, refused, 0)


@pytest.mark.parametrize("environment_name", ["development", "production"])
@pytest.mark.parametrize(
    ("given", "status"),
    [(f"Bearer {TOKEN}", 200), (f"Bearer {TOKEN}x", 401), (TOKEN, 401), ("", 401), ("é", 401)],
)
def test_with_a_token_set_it_is_needed_everywhere(
    connect: Connect, environment_name: str, given: str, status: int
) -> None:
    client = connect(
        host="192.0.2.7", COS_EVENTS_ENVIRONMENT=environment_name, COS_EVENTS_DEBUG_TOKEN=TOKEN
    )
    headers = {"Authorization": given.encode("latin-1")}
    answer = client.get("/debug/messages", headers=headers)
    assert answer.status_code == status
    assert TOKEN not in answer.text


def test_a_token_may_be_any_text(connect: Connect) -> None:
    token = "ein-Schlüssel-für-🔑"
    client = connect(COS_EVENTS_DEBUG_TOKEN=token)
    for given, status in ((token, 200), (token.replace("ü", "u"), 401)):
        headers = {"Authorization": f"Bearer {given}".encode()}
        assert client.get("/debug/redis-health", headers=headers).status_code == status


def test_an_error_that_nobody_expected_is_json_with_the_requests_id(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr("cos_events.api.debug._write", fail)
    client = connect()
    client.app.state.recent  # noqa: B018 - it is started
    answer = TestClient(
        client.app, "http://127.0.0.1", raise_server_exceptions=False, client=("127.0.0.1", 1)
    ).post("/debug/test-log", headers={"X-Request-ID": "req-7"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "req-7")
    assert "the API's log" in answer.json()["detail"]
    assert "hunter2" not in answer.text


def test_a_database_that_is_away_is_a_sentence(connect: Connect) -> None:
    client = connect(DATABASE_URL="postgresql://nobody:secret@127.0.0.1:1/none")
    answer = client.post("/debug/test-log")
    assert answer.status_code == 503
    assert "cannot be used" in answer.json()["detail"]
    assert "secret" not in answer.text


def test_the_answer_is_json_also_for_a_path_that_is_none(connect: Connect) -> None:
    answer = connect().get("/nothing")
    assert (answer.status_code, json.loads(answer.text)) == (404, {"detail": "Not Found"})
