"""The envelope: exactly seven fields, and nothing else is one."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cos_events import Envelope, InvalidEnvelope
from cos_events.envelope import format_timestamp

SECRET = "hunter2"

GOOD: dict[str, Any] = {
    "base_log_id": "0197812c-0000-7000-8000-000000000001",
    "source_module": "cc",
    "timestamp": "2025-06-18T10:30:00.123456Z",
    "trace_id": "trace",
    "request_id": "request",
    "event_type": "event_log",
    "data": {"level": "info", "nested": [1, 2.5, None, True, {"deep": "ö"}]},
}


def with_data(text: str) -> str:
    """A complete envelope whose `data.field` is this JSON text."""
    return json.dumps({**GOOD, "data": {"field": "HERE"}}).replace('"HERE"', text)


def refusal(raw: str | bytes) -> str:
    with pytest.raises(InvalidEnvelope) as refused:
        Envelope.decode(raw)
    return str(refused.value)


def test_an_envelope_is_an_object_of_exactly_seven_fields_with_their_types() -> None:
    sent = json.loads(Envelope.decode(json.dumps(GOOD)).encode())
    assert sent == GOOD
    assert {name: type(value) for name, value in sent.items()} == {
        "base_log_id": str,
        "source_module": str,
        "timestamp": str,
        "trace_id": str,
        "request_id": str,
        "event_type": str,
        "data": dict,
    }


def test_a_decoded_envelope_holds_python_values() -> None:
    envelope = Envelope.decode(json.dumps(GOOD).encode())
    assert envelope.base_log_id == UUID(GOOD["base_log_id"])
    assert envelope.timestamp == datetime(2025, 6, 18, 10, 30, 0, 123456, tzinfo=UTC)
    assert envelope.timestamp.utcoffset() == timedelta(0)


def test_an_envelope_cannot_be_changed() -> None:
    envelope = Envelope.decode(json.dumps(GOOD))
    with pytest.raises(ValidationError, match="frozen"):
        envelope.trace_id = "another"


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2025, 6, 18, 10, 30, tzinfo=UTC), "2025-06-18T10:30:00.000000Z"),
        (datetime(2025, 6, 18, 10, 30, 0, 1, tzinfo=UTC), "2025-06-18T10:30:00.000001Z"),
        (
            datetime(2025, 6, 18, 1, 0, tzinfo=timezone(timedelta(hours=2))),
            "2025-06-17T23:00:00.000000Z",
        ),
    ],
)
def test_a_timestamp_is_rfc_3339_in_utc_with_microseconds_and_z(moment, text) -> None:
    assert format_timestamp(moment) == text
    assert json.loads(Envelope.decode(json.dumps({**GOOD, "timestamp": text})).encode())[
        "timestamp"
    ] == (text)


@pytest.mark.parametrize("field", GOOD)
def test_a_missing_field_is_named(field: str) -> None:
    raw = json.dumps({name: value for name, value in GOOD.items() if name != field})
    assert f"{field}: Field required" in refusal(raw)


def test_an_extra_field_is_named_and_its_content_is_not_quoted() -> None:
    message = refusal(json.dumps({**GOOD, "password": SECRET}))
    assert "password: Extra inputs are not permitted" in message
    assert SECRET not in message


@pytest.mark.parametrize("field", GOOD)
@pytest.mark.parametrize("value", [7, None, [SECRET], True])
def test_a_value_of_a_wrong_type_is_named_and_not_quoted(field: str, value: object) -> None:
    message = refusal(json.dumps({**GOOD, field: value}))
    assert f"{field}: " in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_log_id", SECRET),
        ("source_module", f"CC {SECRET}"),
        ("source_module", f"{SECRET}\n"),
        ("source_module", ""),
        ("event_type", f"{SECRET}-x"),
        ("event_type", "e" * 64),
        ("data", SECRET),
        ("timestamp", SECRET),
        ("timestamp", "2025-06-18T10:30:00Z"),
        ("timestamp", "2025-06-18T10:30:00.123Z"),
        ("timestamp", "2025-06-18T10:30:00.123456"),
        ("timestamp", "2025-06-18T10:30:00.123456+00:00"),
        ("timestamp", "2025-06-18 10:30:00.123456Z"),
        ("timestamp", "2025-06-18T10:30:00.123456Z\n"),
        ("timestamp", "2025-13-18T10:30:00.123456Z"),
        ("timestamp", "2025-06-18T24:00:00.000000Z"),
        ("timestamp", "1750242600"),
    ],
)
def test_a_text_of_a_wrong_form_is_named_and_not_quoted(field: str, value: str) -> None:
    message = refusal(json.dumps({**GOOD, field: value}))
    assert f"{field}: " in message
    assert SECRET not in message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "[NaN]", '{"a": NaN}'])
def test_a_number_that_json_does_not_have_is_refused_by_its_fields_name(number: str) -> None:
    assert "data.field" in refusal(with_data(number))


@pytest.mark.parametrize(
    "raw",
    [
        "",
        SECRET,
        f'{{"trace_id": "{SECRET}"',
        json.dumps(GOOD) * 2,
        json.dumps([SECRET]),
        json.dumps(SECRET),
        "null",
        b"\x00\x01",
        b"\xff\xfe" + json.dumps(GOOD).encode(),
        json.dumps(GOOD).encode("utf-16"),
        json.dumps(GOOD).replace("trace", "\udcff").encode("utf-8", "surrogateescape"),
        json.dumps(GOOD).replace("trace", "\ud800"),
        json.dumps(GOOD).replace("trace", r"\ud800"),
        with_data("[" * 300 + "]" * 300),
        with_data("[" * 100_000),
        with_data("9" * 5_000),
    ],
    ids=[
        "nothing",
        "words",
        "cut short",
        "two at once",
        "a list",
        "a string",
        "null",
        "binary",
        "a byte order mark",
        "UTF-16",
        "invalid UTF-8",
        "a lone surrogate",
        "an escaped lone surrogate",
        "deep nesting",
        "very deep nesting",
        "a number of 5,000 digits",
    ],
)
def test_what_is_no_json_object_is_refused_without_being_quoted(raw: str | bytes) -> None:
    message = refusal(raw)
    assert message.startswith("not an envelope: ")
    assert SECRET not in message
    assert len(message) < 300


def test_every_wrong_field_is_named_in_one_sentence() -> None:
    message = refusal(json.dumps({**GOOD, "source_module": "CC", "trace_id": 1, "data": []}))
    assert all(f"{field}: " in message for field in ("source_module", "trace_id", "data"))
    assert "\n" not in message


def test_a_message_is_bounded_however_long_a_wrong_name_is() -> None:
    assert len(refusal(json.dumps({**GOOD, "x" * 100_000: 1}))) < 2_000


def test_a_large_whole_number_keeps_its_digits() -> None:
    digits = "9" * 400
    assert f'"field":{digits}' in Envelope.decode(with_data(digits)).encode()


names = st.from_regex(r"\A[a-z][a-z0-9_]{0,62}\Z")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
moments = st.datetimes(
    min_value=datetime(1, 1, 2),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.integers(-12, 14).map(lambda hours: timezone(timedelta(hours=hours))),
)
envelopes = st.builds(
    Envelope,
    base_log_id=st.uuids(),
    source_module=names,
    timestamp=moments,
    trace_id=texts,
    request_id=texts,
    event_type=names,
    data=st.dictionaries(texts, values, max_size=4),
)


@given(envelopes)
def test_every_envelope_comes_back_as_it_was_sent(envelope: Envelope) -> None:
    raw = envelope.encode()
    back = Envelope.decode(raw.encode())
    assert back == envelope
    assert back.encode() == raw
    assert json.loads(raw)["data"] == envelope.data


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_an_envelope_or_an_invalid_one(raw: bytes) -> None:
    try:
        Envelope.decode(raw)
    except InvalidEnvelope as error:
        assert str(error).startswith("not an envelope: ")


@given(st.dictionaries(st.sampled_from(list(GOOD)), values), st.data())
def test_any_object_of_those_names_is_an_envelope_or_an_invalid_one(changes, data) -> None:
    raw = json.dumps({**GOOD, **changes}).encode()
    cut = data.draw(st.integers(0, len(raw)))
    for each in (raw, raw[:cut]):
        try:
            decoded = Envelope.decode(each)
        except InvalidEnvelope:
            continue
        assert Envelope.decode(decoded.encode()) == decoded
