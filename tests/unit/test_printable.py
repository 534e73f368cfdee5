"""What somebody wrote steers no terminal, and forges no line."""

from __future__ import annotations

import pytest

from cos_events.cli.output import for_people
from cos_events.envelope import Envelope
from cos_events.error_text import describe
from cos_events.errors import InvalidEnvelope
from cos_events.printable import printable

STEERING = "\x1b]0;owned\x07\x1b[2J\x9b2J\r\u202e\u2028"
ESCAPED = r"\x1b]0;owned\x07\x1b[2J\x9b2J\r\u202e\u2028"


def test_what_steers_is_escaped_and_all_else_stays() -> None:
    assert printable(STEERING) == ESCAPED
    assert printable("a\nb") == r"a\nb"
    for text in ("", "plain", "ünï\tcödé 日本語 👍🏽 שלום \\x1b"):
        assert printable(text) == text


def test_an_error_and_a_cell_of_a_table_keep_their_lines() -> None:
    assert describe(ValueError(f"one\ntwo {STEERING}")) == f"ValueError: one\ntwo {ESCAPED}"
    assert for_people(f"one\ntwo {STEERING}") == f"one\ntwo {ESCAPED}"


def test_a_field_that_does_not_belong_is_named_without_harm() -> None:
    with pytest.raises(InvalidEnvelope, match=r"forged\\n\\x1b") as refused:
        Envelope.decode(
            '{"base_log_id": "01a20832-7046-7547-9a20-11afda7256be", "source_module": "cc", '
            '"timestamp": "2026-01-01T00:00:00Z", "trace_id": "", "request_id": "", '
            '"event_type": "x", "data": {}, "forged\\n\\u001b": 1}'
        )
    assert printable(str(refused.value)) == str(refused.value)
