"""`/health`: an answer is not enough, events must move."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from databases import be_at_revision, take_no_writes
from fastapi.testclient import TestClient
from sqlalchemy import Engine, make_url, text, update
from sqlalchemy.orm import Session

from cos_events import record_event
from cos_events.embedded import EmbeddedPostgres, Servers
from cos_events.embedded.process import frozen
from cos_events.health import STUCK_AFTER
from cos_events.store import deliveries, subscriptions
from cos_events.store.models import OutboxRow, SubscriptionRow
from cos_events.subscription import Subscription

Connect = Callable[..., TestClient]


@pytest.fixture
def add_old(database: Engine) -> Callable[..., None]:
    """An event recorded long ago, and published long ago if asked."""

    def add(*, published: bool, had_by: str | None = None) -> None:
        old = datetime.now(UTC) - timedelta(seconds=STUCK_AFTER + 10)
        with Session(database) as session, session.begin():
            event = record_event(session, "event_log", {})
            session.flush()
            session.execute(
                update(OutboxRow).values(recorded_at=old, published_at=old if published else None)
            )
            if had_by:
                deliveries.settle(session, had_by, [event], 1)

    return add


def subscribe(on: Engine, name: str, *event_types: str) -> None:
    with on.begin() as connection:
        wanted = frozenset(event_types) or None
        subscriptions.register(connection, [Subscription(name, event_types=wanted)])


def test_a_process_that_answers_is_live_whatever_else_is_down(connect: Connect) -> None:
    client = connect(DATABASE_URL="postgresql://127.0.0.1:1/none", REDIS_URL="redis://127.0.0.1:1")
    assert client.get("/health/live").json() == {"status": "live"}


def test_a_bus_whose_events_move_is_ready(
    connect: Connect, database: Engine, add_old: Callable[..., None]
) -> None:
    subscribe(database, "mailer")
    add_old(published=True, had_by="mailer")
    answer = connect().get("/health/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "problems": []})


def test_an_outbox_that_nobody_empties_is_not(
    connect: Connect, add_old: Callable[..., None]
) -> None:
    add_old(published=False)
    answer = connect().get("/health/ready")
    assert answer.status_code == 503
    (problem,) = answer.json()["problems"]
    assert problem.startswith("1 events wait to be published, the oldest for 2 m:")


def test_a_subscription_that_gets_nothing_is_not(
    connect: Connect, database: Engine, add_old: Callable[..., None]
) -> None:
    subscribe(database, "mailer")
    add_old(published=True)
    answer = connect().get("/health/ready")
    assert answer.status_code == 503
    assert "mailer has not received an event" in answer.json()["problems"][0]
    with database.begin() as connection:
        connection.execute(update(SubscriptionRow).values(settled_through=10**6))
    assert connect().get("/health/ready").status_code == 200


def test_a_sequence_with_a_cache_is_a_problem_with_its_remedy(
    connect: Connect, database: Engine
) -> None:
    client = connect()
    with database.begin() as connection:
        connection.execute(text("ALTER SEQUENCE cos_events.outbox_id_seq CACHE 50"))
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    (problem,) = answer.json()["problems"]
    assert problem.startswith("each connection takes 50 outbox ids at once")
    remedy = problem.partition(": ")[2].partition(",")[0]
    with database.begin() as connection:
        connection.execute(text(remedy))
    assert client.get("/health/ready").status_code == 200


def test_history_that_a_new_subscription_is_still_to_get_is_no_problem(
    connect: Connect, database: Engine, add_old: Callable[..., None]
) -> None:
    subscribe(database, "mailer")
    add_old(published=True)
    with database.begin() as connection:
        connection.execute(update(SubscriptionRow).values(backfill_until=10**6))
    assert connect().get("/health/ready").status_code == 200


def test_a_database_that_is_away_is_a_problem_whose_details_are_in_the_log_alone(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(DATABASE_URL="postgresql://nobody:secret@127.0.0.1:1/none")
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["problems"] == ["PostgreSQL cannot be used: the API's log says why"]
    assert "nobody:***@127.0.0.1:1/none cannot be used: " in caplog.text
    assert "refused; check that it runs and that DATABASE_URL is right" in caplog.text
    assert "secret" not in caplog.text


def test_a_database_without_tables_is_a_problem_that_does_not_say_which_it_is(
    connect: Connect, servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    answer = connect(DATABASE_URL=servers.database_url).get("/health/ready")
    assert answer.status_code == 503
    (problem,) = answer.json()["problems"]
    assert problem == (
        "the database lacks cos-events tables, or has old ones: run `cos-events db upgrade`"
    )
    assert make_url(servers.database_url).render_as_string() in caplog.text


def test_postgresql_that_stands_still_is_a_problem_in_bounded_time(
    connect: Connect, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = EmbeddedPostgres(place / "postgres", "secret")
    server.start()
    try:
        url = make_url(server.url).update_query_dict({"connect_timeout": "2"})
        client = connect(DATABASE_URL=url.render_as_string(hide_password=False))
        assert client.get("/health/ready").json()["problems"][0].endswith("`cos-events db upgrade`")
        assert server.pid
        with frozen(server.pid):
            answer = client.get("/health/ready")
    finally:
        server.stop()
    assert answer.status_code == 503
    (problem,) = answer.json()["problems"]
    assert problem.startswith("PostgreSQL cannot be used")
    assert "timeout expired" in caplog.text


def test_a_database_that_takes_no_writes_is_a_problem(connect: Connect, database: Engine) -> None:
    take_no_writes(database)
    answer = connect().get("/health/ready")
    assert answer.status_code == 503
    (problem,) = answer.json()["problems"]
    assert problem.startswith("PostgreSQL accepts no writes: is it a standby")


def test_tables_of_an_older_version_are_a_problem(connect: Connect, database: Engine) -> None:
    be_at_revision(database, "0003")
    answer = connect().get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["problems"] == [
        "the database has the tables of an older version: run `cos-events db upgrade`"
    ]


def test_an_event_that_a_subscription_does_not_want_is_no_problem(
    connect: Connect, database: Engine, add_old: Callable[..., None]
) -> None:
    subscribe(database, "mailer", "order_placed")
    add_old(published=True)
    assert connect().get("/health/ready").json() == {"status": "ready", "problems": []}
