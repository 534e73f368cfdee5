"""The log shows the application's own lines, not those of the bus and of libraries around them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text

from cos_events import Envelope
from cos_events.attempt import call
from cos_events.error_frames import frames, innermost_frame
from cos_events.recording import make_envelope
from cos_events.retry import RetryPolicy
from cos_events.subscribers import Subscriber
from cos_events.subscription import Subscription

MESSAGE = Envelope(
    base_log_id=uuid4(),
    source_module="shop",
    timestamp=datetime.now(UTC),
    trace_id="",
    request_id="",
    event_type="order_placed",
    data={},
)


def failure(handler: Callable[..., Any]) -> Exception:
    """What the handler raises, through all that the bus and Python call on the way to it."""
    with pytest.raises(Exception) as raised:  # noqa: PT011 - whatever it raises
        call(Subscriber(Subscription("stock"), handler, False, 1, 0.5, RetryPolicy()), [MESSAGE])
    return raised.value.with_traceback(raised.value.__traceback__.tb_next)


def files(shown: str) -> list[str]:
    return [line.split('"')[1] for line in shown.splitlines() if line.startswith("  File")]


def query() -> None:
    with create_engine("sqlite://").connect() as connection:
        connection.execute(text("SELECT * FROM nowhere"))


def handle(message: Envelope) -> None:
    query()


async def handle_in_a_loop(message: Envelope) -> None:
    query()


def record_badly(message: Envelope) -> None:
    make_envelope(event_type="Order.Placed", data={})


def read_badly(message: Envelope) -> None:
    datetime.fromisoformat("yesterday")


@pytest.mark.parametrize(
    ("handler", "line"),
    [
        (handle, "connection.execute("),
        (handle_in_a_loop, "connection.execute("),
        (record_badly, "make_envelope("),
        (read_badly, "datetime.fromisoformat("),
    ],
)
def test_the_one_frame_is_the_last_of_the_applications_own(
    handler: Callable[..., Any], line: str
) -> None:
    shown = innermost_frame(failure(handler))
    assert files(shown) == [__file__]
    assert line in shown


@pytest.mark.parametrize("handler", [handle, handle_in_a_loop])
def test_all_frames_begin_with_the_handlers(handler: Callable[..., Any]) -> None:
    shown = frames(failure(handler))
    assert files(shown)[:2] == [__file__, __file__]
    assert f"in {handler.__name__}\n" in shown
    assert "sqlalchemy" in files(shown)[-1]


def test_an_application_that_is_installed_is_known_by_its_handler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages" / "installed_shop.py"
    installed.parent.mkdir()
    installed.write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(installed.parent)
    import installed_shop  # type: ignore[import-not-found]

    monkeypatch.delitem(sys.modules, "installed_shop")
    shown = innermost_frame(failure(installed_shop.handle))
    assert files(shown) == [str(installed)]
    assert "connection.execute(" in shown


def test_what_the_bus_itself_raises_shows_where() -> None:
    error = failure(lambda message: False)
    assert files(frames(error))[-1:] == files(innermost_frame(error))
    assert "raise Unsuccessful" in innermost_frame(error)


def test_an_error_that_nobody_raised_has_no_frames() -> None:
    assert (frames(ValueError("no")), innermost_frame(ValueError("no"))) == ("", "")
