"""What may be published, and under which name: everything else is refused with its reason."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
from redis import TimeoutError as RedisTimeout
from redis.asyncio.connection import SSLConnection
from redis.connection import SSLConnection as SyncSSLConnection

import cos_events
from cos_events import Envelope, InvalidPayload
from cos_events.errors import ConfigurationError
from cos_events.pubsub import (
    ReceivedMessage,
    messages,
    publish_message_sync,
    skipped_messages,
    subscribe_to_channel,
    subscribe_to_channel_sync,
)
from cos_events.pubsub import clients as pubsub_clients
from cos_events.pubsub.messages import check_channel, decode, encode

SECRET = "hunter2"

ENVELOPE = Envelope(
    base_log_id=UUID("0197812c-0000-7000-8000-000000000001"),
    source_module="cc",
    timestamp=datetime(2025, 6, 18, 10, 30, 0, 123456, tzinfo=UTC),
    trace_id="trace",
    request_id="request",
    event_type="event_log",
    data={"text": "ö"},
)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "must not be empty"),
        ("two words", "must not hold white space"),
        ("tab\tbed", "must not hold white space, control"),
        ("line\n", "must not hold white space, control"),
        ("no-break\N{NO-BREAK SPACE}space", "must not hold white space"),
        ("nul\0", "must not hold white space, control"),
        ("lone\ud800surrogate", "unprintable"),
        ("x" * 257, "has 257 characters, more than 256"),
        (b"bytes", "must be text, not bytes"),
        (None, "must be text, not NoneType"),
    ],
)
def test_a_bad_channel_name_is_a_value_error_with_its_reason(name, reason) -> None:
    for refuse in (
        subscribe_to_channel,
        subscribe_to_channel_sync,
        lambda channel: publish_message_sync(channel, {}),
    ):
        with pytest.raises(ValueError, match=reason) as refused:
            refuse(name)
        assert isinstance(refused.value, InvalidPayload)


@pytest.mark.parametrize("name", ["x", "mem0.recorded.cc", "ünïcode", "x" * 256, "a:b/c#d"])
def test_a_good_channel_name_is_taken(name) -> None:
    check_channel(name)


def test_nothing_can_be_published_on_a_pattern() -> None:
    with pytest.raises(ValueError, match="is a pattern: it can be subscribed to"):
        publish_message_sync("mem0.recorded.*", {})


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"a": {"b": [datetime.now(UTC)]}}, "message.a.b.0: datetime is not a JSON value"),
        ({"a": {1, 2}}, "message.a: set is not a JSON value"),
        ({"a": b"bytes"}, "message.a: bytes is not a JSON value"),
        (object(), "message.value: object is not a JSON value"),
        ({1: "a number for a key"}, "message"),
        ({"a": float("nan")}, "message.a: Input should be a finite number"),
        ([float("inf")], "message.value.0: Input should be a finite number"),
        ({"a": "\ud800"}, "surrogates not allowed"),
        ("plain text", "it is not JSON: expected value"),
        ("", "it is not JSON"),
        ('{"a": NaN}', "it is not JSON"),
        ('{"a": 1e999}', "message.a: Input should be a finite number"),
        ('{"a": 1} more', "it is not JSON: trailing characters"),
        ("\ud800", "not valid Unicode text"),
        ("[" * 5_000 + "]" * 5_000, "it is not JSON: recursion limit exceeded"),
    ],
)
def test_a_message_that_is_not_json_is_a_value_error_with_its_reason(message, reason) -> None:
    with pytest.raises(ValueError, match="cannot publish this: ") as refused:
        encode(message)
    assert isinstance(refused.value, InvalidPayload)
    assert reason in str(refused.value)


def test_a_message_that_contains_itself_is_refused() -> None:
    endless: list = []
    endless.append(endless)
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for message in (endless, deep):
        with pytest.raises(InvalidPayload, match="cannot publish this"):
            encode(message)


@pytest.mark.parametrize("message", [{"a": "x" * 1_024}, json.dumps("x" * 1_024)])
def test_a_message_that_is_too_large_is_refused(message, environment) -> None:
    environment(COS_EVENTS_MAX_PAYLOAD_BYTES="1024")
    with pytest.raises(ValueError, match=r"it is 1,0\d\d bytes, more than 1,024; shorten it"):
        encode(message)


def test_an_envelope_that_is_too_large_is_refused(environment) -> None:
    environment(COS_EVENTS_MAX_PAYLOAD_BYTES="1024")
    with pytest.raises(ValueError, match="more than 1,024"):
        encode(ENVELOPE.model_copy(update={"data": {"a": "x" * 1_024}}))


def test_a_reason_does_not_quote_the_content() -> None:
    for message in ({"a": [SECRET, datetime.now(UTC)]}, f"{SECRET} {{", {SECRET * 30: {1}}):
        with pytest.raises(InvalidPayload) as refused:
            encode(message)
        assert f"'{SECRET}" not in str(refused.value)
        assert SECRET * 30 not in str(refused.value)


@pytest.mark.parametrize("value", [None, True, 1, 1.5, [], {"a": ["ö", {"b": None}]}, 2**70])
def test_a_json_value_arrives_as_it_was(value) -> None:
    raw = encode(value)
    received = decode("x", {"type": "message", "channel": b"x", "data": raw})
    assert received == ReceivedMessage("x", raw.decode(), value)


def test_a_text_is_json_already_and_goes_out_unchanged() -> None:
    assert encode('{"a":  1.10}') == b'{"a":  1.10}'


def test_an_envelope_arrives_as_an_envelope() -> None:
    raw = encode(ENVELOPE)
    received = decode("x", {"type": "pmessage", "channel": b"mem0.recorded.cc", "data": raw})
    assert received == ReceivedMessage("mem0.recorded.cc", ENVELOPE.encode(), ENVELOPE)


def test_data_is_bytes_where_the_settings_say_so(environment) -> None:
    environment(REDIS_DECODE_RESPONSES="false")
    received = decode("x", {"type": "message", "channel": b"x", "data": b"[1]"})
    assert received == ReceivedMessage("x", b"[1]", [1])


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"plain", b'{"a": NaN}', b"[" * 5_000])
def test_what_cannot_be_decoded_is_skipped_counted_and_logged(raw, caplog, monkeypatch) -> None:
    monkeypatch.setattr(messages, "_skipped", messages.Counter())
    assert decode("x.*", {"type": "pmessage", "channel": b"x.y", "data": raw}) is None
    assert skipped_messages() == {"x.*": 1}
    assert caplog.messages[0].startswith(f"skipped {len(raw)} bytes on x.y that are not JSON: ")


def test_a_tls_url_makes_tls_connections(environment) -> None:
    environment(REDIS_URL="rediss://user:secret@redis.example:6380/2?ssl_cert_reqs=none")
    connections = (
        (pubsub_clients.make_client(), SyncSSLConnection),
        (pubsub_clients.make_async_client(), SSLConnection),
    )
    for client, kind in connections:
        pool = client.connection_pool
        assert pool.connection_class is kind
        made = pool.make_connection()
        assert (made.host, made.port, made.db, made.password) == (
            "redis.example",
            6380,
            2,
            "secret",
        )


def test_every_redis_setting_takes_effect(environment) -> None:
    environment(
        REDIS_URL="redis://localhost:1/0",
        REDIS_MAX_CONNECTIONS="7",
        REDIS_SOCKET_CONNECT_TIMEOUT="1.5",
        REDIS_SOCKET_KEEPALIVE="false",
        REDIS_RETRY_ON_TIMEOUT="true",
        REDIS_DECODE_RESPONSES="false",
        REDIS_HEALTH_CHECK_INTERVAL="12.5",
        COS_EVENTS_WIRE_TIMEOUT="0.7",
    )
    for client in (pubsub_clients.make_client(), pubsub_clients.make_async_client()):
        pool = client.connection_pool
        made = pool.make_connection()
        assert (pool.max_connections, pool.timeout) == (7, 0.7)
        assert (made.socket_timeout, made.socket_connect_timeout) == (0.7, 1.5)
        assert (made.socket_keepalive, made.health_check_interval) == (False, 12.5)
        assert pool.get_encoder().decode_responses is False
        assert made.retry.get_retries() == 1
        assert RedisTimeout in made.retry._supported_errors
    environment(REDIS_RETRY_ON_TIMEOUT="false")
    for client in (pubsub_clients.make_client(), pubsub_clients.make_async_client()):
        assert RedisTimeout not in client.get_retry()._supported_errors


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("notaport/0", "port"),
        ("1/0?ssl_cert_reqs=none", "redis-py got an unexpected keyword argument 'ssl_cert_reqs'"),
        ("1/0?pasword=hunter2", "redis-py got an unexpected keyword argument 'pasword'"),
    ],
)
def test_a_url_that_cannot_be_used_is_a_configuration_error_without_its_password(
    environment, end: str, why: str
) -> None:
    environment(REDIS_URL=f"redis://:hunter2@localhost:{end}")
    with pytest.raises(ConfigurationError, match=f"REDIS_URL=.*{why}") as refused:
        pubsub_clients.get_redis_client_sync()
    assert SECRET not in str(refused.value)


def test_an_event_loop_must_run_for_an_asynchronous_client() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        cos_events.get_redis_client()
