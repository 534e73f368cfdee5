"""A worker's life by pytest-celery: ready, killed, restarted, its broker restarted.

Processes take the containers' place, so that no Docker is needed (see conftest.py). One test with
a broker in a real container runs where a Docker engine answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import docker
import pytest
from docker.errors import DockerException, ImageNotFound
from pytest_celery import CeleryTestSetup, CeleryWorkerContainer, RedisContainer
from pytest_celery.vendors.redis.broker.api import RedisTestBroker
from pytest_docker_tools import container, fxtr
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from cos_events.l1 import log_l1
from cos_events.store.models import DeliveryRow, OutboxRow
from workers.models import Activity


def record(engine: Engine, count: int = 1) -> None:
    data = {"level": "INFO", "component": "tests", "message": "hello"}
    with Session(engine) as session, session.begin():
        for _ in range(count):
            log_l1(session, "event_log", data)


def delivered_once(engine: Engine, count: int) -> bool:
    """Each subscription has had so many events, and `activity` counted each once."""
    with Session(engine) as session:
        rows = session.execute(
            select(DeliveryRow.subscription, func.count())
            .where(DeliveryRow.state == "delivered")
            .group_by(DeliveryRow.subscription)
        )
        had = {row[0]: row[1] for row in rows}
        counted = session.scalar(select(func.sum(Activity.events)))
    return had == {"activity": count, "graph_staging": count} and counted == count


def waiting_for_a_lock(engine: Engine) -> int:
    with engine.connect() as connection:
        statement = text(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return int(connection.scalar(statement) or 0)


def test_a_worker_that_is_ready_knows_the_bus_and_ends_warm_when_it_is_restarted(
    life: CeleryTestSetup, database: Engine, eventually: Callable[..., None]
) -> None:
    node = life.worker.hostname()
    registered = life.app.control.inspect([node]).registered()[node]
    assert {"activity", "graph_staging", "cos_events.publish"} <= set(registered)
    consumed = life.app.control.inspect([node]).active_queues()[node]
    assert {queue["name"] for queue in consumed} == {
        *("activity", "graph_staging", "cos_events.publish", life.worker.worker_queue)
    }
    with Session(database) as session:
        names = session.scalars(text("SELECT name FROM cos_events.subscription ORDER BY name"))
        assert list(names) == ["activity", "graph_staging"]
    record(database, 5)
    life.worker.restart(force=True)
    assert life.worker.container._container.exit_codes == [0]
    record(database, 5)
    eventually(lambda: delivered_once(database, 10))


def test_what_a_killed_worker_had_in_hand_is_delivered_after_its_restart(
    life: CeleryTestSetup, database: Engine, eventually: Callable[..., None]
) -> None:
    record(database)
    eventually(lambda: delivered_once(database, 1))
    with Session(database) as blocking:
        blocking.execute(select(Activity).with_for_update())
        record(database)
        eventually(lambda: waiting_for_a_lock(database))
        life.worker.kill()
        assert life.worker.container.status == "exited"
        blocking.rollback()
    assert not delivered_once(database, 2)
    life.worker.restart()
    eventually(lambda: delivered_once(database, 2))


def test_events_recorded_while_the_broker_is_away_are_delivered_when_it_is_back_and_empty(
    life: CeleryTestSetup, database: Engine, eventually: Callable[..., None]
) -> None:
    record(database)
    eventually(lambda: delivered_once(database, 1))
    life.broker.kill()
    record(database, 3)
    unpublished = select(func.count()).where(OutboxRow.published_at.is_(None))
    with Session(database) as session:
        assert session.scalar(unpublished) == 3
    life.worker.wait_for_log("Connection to broker lost", timeout=20)
    life.broker.restart()
    eventually(lambda: delivered_once(database, 4))
    assert life.worker.container.status == "running"


REDIS_IMAGE = os.environ.get("REDIS_IMAGE", "redis:8")
redis_in_docker = container(
    image=REDIS_IMAGE,
    ports=fxtr("default_redis_broker_ports"),
    command=fxtr("default_redis_broker_command"),
    wrapper_class=RedisContainer,
)


@pytest.fixture
def docker_engine() -> None:
    """Skips where no Docker engine answers, or it cannot get the image."""
    try:
        client = docker.from_env()
        client.ping()
    except DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    try:
        client.images.get(REDIS_IMAGE)
    except ImageNotFound:
        try:
            client.images.pull(REDIS_IMAGE)
        except DockerException as error:
            pytest.skip(f"Docker cannot get the image {REDIS_IMAGE}: {error}")


@pytest.mark.docker
def test_events_are_delivered_over_a_redis_in_a_container_that_is_restarted(
    docker_engine: None,
    request: pytest.FixtureRequest,
    database: Engine,
    start_worker: Callable[[str], CeleryWorkerContainer],
    eventually: Callable[..., None],
) -> None:
    broker = RedisTestBroker(request.getfixturevalue("redis_in_docker"))
    assert broker.ready()
    worker = start_worker(broker.config()["host_url"])
    assert worker.ready()
    record(database, 3)
    eventually(lambda: delivered_once(database, 3))
    worker.kill("SIGTERM")
    record(database, 3)
    broker.restart()
    # Docker gives a restarted container another port.
    start_worker(broker.config()["host_url"])
    eventually(lambda: delivered_once(database, 6))
