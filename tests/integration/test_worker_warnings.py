"""What a worker says before it starts, of what is probably not meant."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from celery import Celery
from sqlalchemy import Engine

from cos_events import install
from cos_events.app import _prepare_worker
from cos_events.store import subscriptions
from cos_events.subscription import Subscription
from cos_events.topology import PUBLISH_QUEUE

URL = "redis://:pa55word@127.0.0.1:6390/0"


@pytest.fixture
def start(
    database: Engine, environment: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> Callable[..., str]:
    """What a worker with this broker, these queues and Celery settings says."""
    environment(BROKER_URL=URL)

    def declare(broker: str, queues: list[str], **conf: object) -> str:
        app = install(Celery("warned", broker=broker, set_as_current=False))
        app.conf.update(conf)
        _prepare_worker(SimpleNamespace(app=app), {"queues": ",".join(queues)})
        return caplog.text

    return declare


def test_a_worker_does_not_start_with_a_channel_that_cannot_be_used(
    start: Callable[..., str], environment: Callable[..., None]
) -> None:
    environment(REDIS_URL="redis://:pa55word@127.0.0.1:1/0?ssl_cert_reqs=none")
    with pytest.raises(SystemExit) as ended:
        start(URL, [PUBLISH_QUEUE])
    assert "cos-events: REDIS_URL='redis://…': " in str(ended.value)


def test_a_worker_as_it_should_be_is_not_warned(start: Callable[..., str]) -> None:
    assert start(URL, [PUBLISH_QUEUE, "reports"]) == ""


@pytest.mark.parametrize("accepted", [["pickle"], []])
def test_a_worker_that_would_throw_away_what_the_bus_sends_does_not_start(
    start: Callable[..., str], accepted: list[str]
) -> None:
    with pytest.raises(SystemExit, match="cos-events: accept_content=.* has no 'json': add it"):
        start(URL, [PUBLISH_QUEUE], accept_content=accepted)
    assert start(URL, ["reports"], accept_content=accepted) == ""


@pytest.mark.parametrize("accepted", [["pickle", "json"], {"application/json"}, None])
def test_a_worker_that_accepts_json_starts(start: Callable[..., str], accepted: object) -> None:
    assert start(URL, [PUBLISH_QUEUE], accept_content=accepted) == ""


def test_a_misspelt_queue_is_named_with_what_is_meant(start: Callable[..., str]) -> None:
    said = start(URL, ["cos_events.publsh", "reports"])
    assert (
        "a queue 'cos_events.publsh' that nobody has declared: did you mean 'cos_events.publish'"
        in said
    )
    assert "reports" not in said


def test_a_worker_without_a_subscriptions_handler_does_not_take_its_events(
    start: Callable[..., str], database: Engine
) -> None:
    with database.begin() as connection:
        subscriptions.register(connection, [Subscription("mailer")])
    with pytest.raises(SystemExit, match="cos-events: mailer is a subscription whose handler"):
        start(URL, [PUBLISH_QUEUE, "mailer"])
    assert "a queue 'mailr' that nobody has declared: did you mean 'mailer'?" in start(
        URL, ["mailr"]
    )


def test_another_broker_than_the_commands_look_for_is_named_without_its_password(
    start: Callable[..., str],
) -> None:
    said = start(URL.replace("6390", "6391"), [PUBLISH_QUEUE])
    assert "127.0.0.1:6391/0, but BROKER_URL is redis://:***@127.0.0.1:6390/0" in said
    assert "pa55word" not in said
