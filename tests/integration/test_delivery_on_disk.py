"""Several events of a handler with the session in one task: they wait for the disk together."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from kombu.message import Message
from outages import postgres_away
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from cos_events import Envelope, delivery, record_event
from cos_events.embedded import EmbeddedPostgres
from cos_events.faults.folder import own_folder
from cos_events.store import deliveries
from cos_events.store.engine import get_engine
from cos_events.store.migrations import upgrade

if TYPE_CHECKING:
    from conftest import Bus


def waits(session: Session) -> str:
    return session.scalars(text("SHOW synchronous_commit")).one()


@pytest.fixture
def at_commit() -> Iterator[list[str]]:
    """What each session's transaction that said so in `info` waits for when it commits."""
    seen: list[str] = []

    def look(session: Session) -> None:
        if "looked at" in session.info:
            session.flush()
            seen.append(waits(session))

    event.listen(Session, "before_commit", look)
    yield seen
    event.remove(Session, "before_commit", look)


def test_one_event_waits_for_the_disk_and_several_do_so_once(
    bus: Bus, at_commit: list[str]
) -> None:
    def handle(message: Envelope, session: Session) -> None:
        session.info["looked at"] = True

    name = bus.declare(handle)
    raws = [bus.record(n=n) for n in range(4)]
    bus.run(name, raws[0])
    assert at_commit == ["on"]
    bus.run(name, *raws[1:])
    assert at_commit == ["on", "off", "off", "off"]
    assert {bus.state(name, raw) for raw in raws} == {"delivered"}


def nothing(_session: Session) -> None:
    pass


@pytest.mark.parametrize("then", [Session.flush, Session.commit, nothing])
def test_a_commit_that_brings_new_events_waits_for_the_disk_itself(
    bus: Bus, at_commit: list[str], then: Callable[[Session], None]
) -> None:
    def handle(message: Envelope, session: Session) -> None:
        session.info["looked at"] = True
        if message.data["n"] == 1:
            record_event(session, "followed", {}, module=bus.module)
            then(session)

    name = bus.declare(handle, event_types=["event_log"])
    bus.run(name, *[bus.record(n=n) for n in range(3)])
    assert at_commit == ["off", "on", "off"]
    assert len(bus.envelopes()) == 4


@pytest.mark.parametrize("bind", [Session.get_bind, Session.connection])
def test_so_does_that_of_another_session_on_the_handlers_engine_or_connection(
    bus: Bus, at_commit: list[str], bind: Callable[[Session], Any]
) -> None:
    def handle(message: Envelope, session: Session) -> None:
        with Session(bind(session)) as another, another.begin():
            another.info["looked at"] = True
            record_event(another, "followed", {}, module=bus.module)

    name = bus.declare(handle, event_types=["event_log"])
    bus.run(name, *[bus.record(n=n) for n in range(2)])
    assert at_commit == ["on", "on"]


@pytest.fixture
def postgres(environment: Callable[..., None]) -> Iterator[EmbeddedPostgres]:
    """One to crash, which by itself writes nothing to the disk for a long while."""
    with own_folder() as home:
        server = EmbeddedPostgres(
            home.path / "postgres", "secret", settings={"wal_writer_delay": "10s"}
        )
        server.start()
        try:
            environment(DATABASE_URL=server.url)
            upgrade(get_engine())
            yield server
        finally:
            server.stop()


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_what_a_task_has_delivered_survives_a_crash_of_postgresql(
    make_bus: Callable[[Engine], Bus], postgres: EmbeddedPostgres
) -> None:
    bus = make_bus(get_engine())
    name = bus.declare(lambda message, session: None)
    raws = [bus.record(n=n) for n in range(3)]
    bus.run(name, *raws)
    os.kill(postgres.pid or 0, signal.SIGQUIT)
    postgres.stop()
    postgres.start()
    get_engine().dispose()
    assert [bus.state(name, raw) for raw in raws] == ["delivered"] * 3


def test_when_that_wait_fails_all_of_them_come_again_and_nothing_happens_twice(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    calls: list[int] = []

    def handle(message: Envelope, session: Session) -> None:
        calls.append(message.data["n"])

    name = bus.declare(handle)
    raws = [bus.record(n=n) for n in range(2)]
    with monkeypatch.context() as patched:
        patched.setattr(delivery, "wait_for_disk", postgres_away)
        bus.run(name, *raws)
    queued: list[Message] = []
    eventually(lambda: queued.extend(bus.queued(name)) or len(queued) == 2)
    assert [message.payload[0][0][0] for message in queued] == raws
    assert {message.headers["retries"] for message in queued} == {0}
    bus.run(name, *raws)
    assert calls == [0, 1]


def test_in_an_outage_each_event_of_a_group_is_sent_again_once(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    def handle(message: Envelope, session: Session) -> None:
        pass

    name = bus.declare(handle)
    raws = [bus.record(n=n) for n in range(3)]
    with monkeypatch.context() as patched:
        patched.setattr(deliveries, "settle", postgres_away)
        patched.setattr(delivery, "wait_for_disk", postgres_away)
        bus.run(name, *raws)
    queued: list[Message] = []
    eventually(lambda: queued.extend(bus.queued(name)) or len(queued) >= 3)
    assert [message.payload[0][0][0] for message in queued] == raws
    assert bus.queued(name) == []
