"""Several events of a handler with the session in one task: they wait for the disk together."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from kombu.message import Message
from outages import postgres_away
from retries import failed
from sqlalchemy import Connection, Engine, event, make_url, text
from sqlalchemy.orm import Session

from cos_events import Envelope, delivery, record_event
from cos_events.embedded import EmbeddedPostgres, own_folder
from cos_events.store import deliveries
from cos_events.store.engine import get_engine
from cos_events.store.migrations import upgrade

if TYPE_CHECKING:
    from conftest import Bus


@pytest.fixture
def at_commit() -> Iterator[list[str]]:
    """What each transaction waits for as it commits, of those that a handler says to `look_at`."""
    seen: list[str] = []

    def look(connection: Connection) -> None:
        if connection.info.pop("looked at", False):
            cursor = connection.connection.cursor()
            cursor.execute("SHOW synchronous_commit")
            seen.extend(cursor.fetchone() or ())

    event.listen(Engine, "commit", look)
    yield seen
    event.remove(Engine, "commit", look)


def look_at(session: Session) -> None:
    session.connection().info["looked at"] = True


def test_one_event_waits_for_the_disk_and_several_do_so_once(
    bus: Bus, at_commit: list[str]
) -> None:
    def handle(message: Envelope, session: Session) -> None:
        look_at(session)

    name = bus.declare(handle)
    raws = [bus.record(n=n) for n in range(4)]
    bus.run(name, raws[0])
    assert at_commit == ["on"]
    bus.run(name, *raws[1:])
    assert at_commit == ["on", "off", "off", "off"]
    assert {bus.state(name, raw) for raw in raws} == {"delivered"}


def nothing(_session: Session) -> None:
    pass


@pytest.mark.parametrize("then", [Session.flush, nothing])
def test_a_commit_that_brings_new_events_waits_for_the_disk_itself(
    bus: Bus, at_commit: list[str], then: Callable[[Session], None]
) -> None:
    def handle(message: Envelope, session: Session) -> None:
        look_at(session)
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
            look_at(another)
            record_event(another, "followed", {}, module=bus.module)

    name = bus.declare(handle, event_types=["event_log"])
    bus.run(name, *[bus.record(n=n) for n in range(2)])
    assert at_commit == ["on", "on"]


def test_so_does_one_that_a_listener_brings_new_events_at_the_last_moment(
    bus: Bus, at_commit: list[str]
) -> None:
    def record(session: Session) -> None:
        record_event(session, "followed", {}, module=bus.module)

    def handle(message: Envelope, session: Session) -> None:
        look_at(session)
        event.listen(session, "before_commit", record, once=True)

    name = bus.declare(handle, event_types=["event_log"])
    bus.run(name, *[bus.record(n=n) for n in range(2)])
    assert at_commit == ["on", "on"]


def test_it_waits_for_what_postgresql_is_told_to_wait_for(
    bus: Bus, environment: Callable[..., None], at_commit: list[str]
) -> None:
    options = {"options": "-c synchronous_commit=local"}
    url = make_url(os.environ["DATABASE_URL"]).update_query_dict(options)
    environment(DATABASE_URL=url.render_as_string(hide_password=False))

    def handle(message: Envelope, session: Session) -> None:
        look_at(session)
        if message.data["n"] == 1:
            record_event(session, "followed", {}, module=bus.module)

    name = bus.declare(handle, event_types=["event_log"])
    bus.run(name, *[bus.record(n=n) for n in range(2)])
    assert at_commit == ["off", "local"]


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


def crash(postgres: EmbeddedPostgres) -> None:
    """And come back; whoever asks it next connects anew."""
    assert postgres.pid
    os.kill(postgres.pid, signal.SIGQUIT)
    postgres.stop()
    postgres.start()
    get_engine().dispose()


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_what_a_task_has_delivered_survives_a_crash_of_postgresql(
    make_bus: Callable[[Engine], Bus], postgres: EmbeddedPostgres
) -> None:
    bus = make_bus(get_engine())
    name = bus.declare(lambda message, session: None)
    raws = [bus.record(n=n) for n in range(3)]
    bus.run(name, *raws)
    crash(postgres)
    assert [bus.state(name, raw) for raw in raws] == ["delivered"] * 3


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_what_postgresql_lost_while_the_task_went_on_comes_again(
    make_bus: Callable[[Engine], Bus],
    postgres: EmbeddedPostgres,
    eventually: Callable[..., None],
) -> None:
    def handle(message: Envelope, session: Session) -> None:
        if message.data["n"] == 1:
            crash(postgres)

    bus = make_bus(get_engine())
    name = bus.declare(handle)
    raws = [bus.record(n=n) for n in range(3)]
    bus.run(name, *raws)
    assert [bus.state(name, raw) for raw in raws] == [None, None, "delivered"]
    queued: list[Message] = []
    eventually(lambda: queued.extend(bus.queued(name)) or len(queued) >= 2)
    assert {message.payload[0][0][0] for message in queued} == set(raws[:2])


def test_what_a_task_has_left_alone_it_does_not_send_again(bus: Bus, database: Engine) -> None:
    def handle(message: Envelope, session: Session) -> None:
        # Meanwhile the other one's retry is due; its copy is on the broker.
        session.execute(
            text(
                "SELECT pg_sleep(extract(epoch FROM next_attempt_at - clock_timestamp()) + 0.01) "
                "FROM cos_events.delivery WHERE state = 'retrying'"
            )
        )

    name = bus.declare(handle)
    waits, other = (bus.record(n=n) for n in range(2))
    failed(database, name, Envelope.decode(waits).base_log_id, wait=3)
    bus.run(name, waits, other)
    assert [bus.state(name, raw) for raw in (waits, other)] == ["retrying", "delivered"]
    assert bus.queued(name) == []


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
