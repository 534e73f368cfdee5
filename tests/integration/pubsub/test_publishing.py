"""What `publish_message` takes, and what arrives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from cos_events import Envelope
from cos_events.pubsub import redis_breaker
from cos_events.recording import make_envelope

if TYPE_CHECKING:
    from conftest import Listener

Publish = Callable[..., bool]

NAME = "mem0.recorded.cc"


def test_a_message_to_nobody_is_published(publishing: Publish, redis: Redis) -> None:
    assert publishing(NAME, {"a": 1}) is True


def test_envelopes_values_and_texts_arrive_in_order(
    publishing: Publish, redis: Redis, listen: Callable[..., Listener]
) -> None:
    listener = listen(NAME)
    envelope = make_envelope(event_type="event_log", data={"text": "ö"})
    for message in (envelope, {"a": [1, None]}, '{"b":  2.50}', '"the end"'):
        assert publishing(NAME, message)
    listener.join()
    assert listener.contents() == [envelope, {"a": [1, None]}, {"b": 2.5}, "the end"]
    assert isinstance(listener.seen[0].content, Envelope)
    assert [each.data for each in listener.seen[1:3]] == ['{"a":[1,null]}', '{"b":  2.50}']
    assert {each.channel for each in listener.seen} == {NAME}


def test_a_pattern_matches_every_module(
    publishing: Publish, redis: Redis, listen: Callable[..., Listener]
) -> None:
    listener = listen("mem0.recorded.*")
    for name in ("mem0.recorded.cc", "mem0.other", "mem0.recorded.pem"):
        assert publishing(name, [name])
    assert publishing("mem0.recorded.cc", '"the end"')
    listener.join()
    assert [each.channel for each in listener.seen] == [NAME, "mem0.recorded.pem", NAME]


def test_bad_input_is_a_value_error_and_no_outage(publishing: Publish, redis: Redis) -> None:
    for name, message in [("two words", {}), (NAME, float("nan")), (NAME, "no JSON")]:
        with pytest.raises(ValueError, match="must not hold|cannot publish"):
            publishing(name, message)
    assert redis_breaker().state == "closed"
    assert publishing(NAME, {})
