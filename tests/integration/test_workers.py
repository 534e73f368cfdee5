"""Worker processes of an application of its own, on each broker: `tests/apps/busapp.py`."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from kombu import Queue, pools
from kombu.transport.native_delayed_delivery import CELERY_DELAYED_DELIVERY_EXCHANGE
from redis import Redis
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from cos_events import broker, record_event
from cos_events.broadcast.message import body_of
from cos_events.store.models import DeliveryRow
from cos_events.subscribers import subscribers_of
from cos_events.task_message import task_headers
from cos_events.topology import PUBLISH_QUEUE, channel_name

ROOT = Path(__file__).parents[2]
APP = "tests.apps.busapp"
KINDS = (
    "plain",
    "session",
    "coroutine",
    "flaky",
    "batch",
    "patient",
    "slow",
    "overtime",
    "deadly",
    "lethal",
)


class Team:
    """The application, its worker processes, and what they did.

    Attributes:
        prefix: of its subscriptions, and its source module.
        app: the same application in this process.
    """

    def __init__(self, engine: Engine, folder: Path, prefix: str, eventually: Any) -> None:
        self.prefix = prefix
        self.node = f"{prefix}@{socket.gethostname()}"
        self._engine = engine
        self._log = folder / "worker.log"
        self.eventually = eventually
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE effect (kind text, event_id uuid, pid int)"))
        sys.modules.pop(APP, None)
        self.app = importlib.import_module(APP).app
        self.subscribers = {n: s for n, s in subscribers_of(self.app).items() if prefix in n}
        self._processes: list[subprocess.Popen[bytes]] = []

    def queue(self, kind: str) -> str:
        return f"{self.prefix}_{kind}"

    def start(
        self,
        *,
        consume_all: bool = False,
        kinds: Sequence[str] = KINDS,
        pool: str = "prefork",
        ready: bool = True,
    ) -> subprocess.Popen[bytes]:
        """A worker that is ready, of these queues: named by -Q, or of all by leaving -Q out."""
        names = ",".join([PUBLISH_QUEUE, *(self.queue(kind) for kind in kinds)])
        queues = [] if consume_all else ["-Q", names]
        celery = [sys.executable, "-m", "celery", "-A", APP, "worker", "-n", self.node]
        with self._log.open("wb") as log:
            worker = subprocess.Popen(
                [*celery, "-c", "2", "-P", pool, "-l", "INFO", *queues],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )
        self._processes.append(worker)
        self.eventually(lambda: " ready." in self.log() or worker.poll() is not None)
        assert worker.poll() is None or not ready, self.log()
        return worker

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self, worker: subprocess.Popen[bytes]) -> None:
        """A warm shutdown."""
        worker.terminate()
        assert worker.wait(120) == 0, self.log()

    def record(self, count: int, event_type: str = "event_log") -> list[UUID]:
        with Session(self._engine) as session:
            ids = [record_event(session, event_type, {"n": n}) for n in range(count)]
            session.commit()
        return ids

    def had(self, kind: str) -> Counter[UUID]:
        """How often each event had this effect."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                text("SELECT event_id FROM effect WHERE kind = :kind"), {"kind": kind}
            )
            return Counter(rows.scalars())

    def state(self, kind: str, event_id: UUID) -> str | None:
        """What the ledger says, once the matter is decided."""
        decided = DeliveryRow.state.in_(["delivered", "dead"])
        ours = DeliveryRow.subscription == self.queue(kind), DeliveryRow.event_id == event_id
        with self._engine.connect() as connection:
            return connection.scalar(select(DeliveryRow.state).where(*ours, decided))

    def pids(self, kind: str) -> list[int]:
        with self._engine.connect() as connection:
            rows = text("SELECT pid FROM effect WHERE kind = :kind")
            return list(connection.scalars(rows, {"kind": kind}))

    def expect(self, ids: list[UUID], *kinds: str, timeout: float = 60) -> None:
        """Each of these kinds has each of these events, once, and no other."""
        for kind in kinds:
            name, wanted = (
                self.queue(kind),
                text(
                    "SELECT count(*) FROM cos_events.delivery"
                    " WHERE subscription = :name AND state = 'delivered'"
                ),
            )

            def delivered(name: str = name, wanted: Any = wanted) -> bool:
                with self._engine.connect() as connection:
                    return connection.scalar(wanted, {"name": name}) >= len(ids)

            self.eventually(delivered, timeout)
            assert self.had(kind) == Counter(ids), kind

    def is_idle(self) -> bool:
        """Whether the worker has no task in hand."""
        inspect = self.app.control.inspect([self.node], timeout=5)
        in_hand = [*(inspect.active() or {}).values(), *(inspect.reserved() or {}).values()]
        return bool(in_hand) and not any(in_hand)

    def depth(self, queue: str) -> int:
        return broker.queue_depths([queue]).get(queue, 0)

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        pools.reset()
        names = [self.queue(kind) for kind in KINDS]
        broker.delete_queues([*names, *(f"{n}.dlq" for n in names), f"{self.prefix}_celery"])
        with broker.connect() as connection, connection.channel() as channel:
            channel.exchange_delete(channel_name(self.prefix))
            for name in names if broker.on_rabbitmq() else []:
                channel.exchange_unbind(
                    "cos_events.redeliver", CELERY_DELAYED_DELIVERY_EXCHANGE, f"#.{name}"
                )


@pytest.fixture
def team(
    database: Engine,
    broker_url: str,
    environment: Callable[..., None],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Team]:
    prefix = request.getfixturevalue("unique")("team")
    environment(BUSAPP_PREFIX=prefix, COS_EVENTS_MODULE=prefix, COS_EVENTS_RELAY_INTERVAL="0.2")
    made = Team(database, tmp_path, prefix, request.getfixturevalue("eventually"))
    yield made
    made.close()


def test_a_plain_celery_worker_without_q_consumes_every_queue(team: Team) -> None:
    team.start(consume_all=True)
    active = team.app.control.inspect([team.node], timeout=10).active_queues()[team.node]
    wanted = {PUBLISH_QUEUE, *(team.queue(kind) for kind in KINDS)}
    assert wanted <= {queue["name"] for queue in active}
    team.expect(team.record(2), "plain")


def test_a_publisher_that_is_there_before_any_subscriber_complains_of_nothing(team: Team) -> None:
    team.stop(team.start(kinds=[], pool="solo"))
    assert not [line for line in team.log().splitlines() if "ERROR" in line or "CRITICAL" in line]


def test_each_event_is_delivered_once_to_every_subscription(team: Team) -> None:
    team.start()
    ids = team.record(25)
    team.expect(ids, "plain", "session", "coroutine", "batch")
    flaky = team.record(5, "flaky")
    team.expect(flaky, "flaky")
    assert team.had("flaky_attempt") == Counter(dict.fromkeys(flaky, 2)), "one retry by Celery"
    ids += flaky
    team.expect(ids, "plain")

    inspect = team.app.control.inspect([team.node], timeout=10)
    registered = inspect.registered()[team.node]
    assert {team.queue(kind) for kind in KINDS} <= {task.split()[0] for task in registered}

    plain = team.subscribers[team.queue("plain")]
    plain.stop_consuming([team.node])
    team.eventually(lambda: "plain" not in str(inspect.active_queues()))
    more = team.record(5)
    team.expect(ids + more, "session")
    team.eventually(lambda: team.depth(plain.name) == 5)
    assert team.had("plain") == Counter(ids)
    plain.start_consuming([team.node])
    team.expect(ids + more, "plain")


def test_no_message_can_stop_a_worker_and_each_lands_on_the_dead_letter_queue(
    team: Team,
) -> None:
    name = team.queue("plain")
    headers = task_headers(name, "8c3b8a1e-0000-4000-8000-000000000000", "()")
    json_type = {"content_type": "application/json", "content_encoding": "utf-8"}
    bytes_type = {"content_type": "application/octet-stream", "content_encoding": "binary"}
    garbage: dict[str, tuple[bytes, dict[str, Any]]] = {
        "random bytes": (b"\xff\x00\xfe\x81", bytes_type),
        "bytes called JSON": (b"\xff\x00\xfe", json_type),
        "a pickle": (b"\x80\x04N.", {**bytes_type, "content_type": "application/x-python"}),
        "an unknown type": (b"hello", {**bytes_type, "content_type": "what/ever"}),
        "an unknown encoding": (b"{}", {**json_type, "content_encoding": "utf-99"}),
        "no compression": (b"{ }", {**json_type, "headers": {"compression": "application/x-gzip"}}),
        "unknown compression": (b"{  }", {**json_type, "headers": {"compression": "none/such"}}),
        "a list": (b"[1, 2, 3]", json_type),
        "null": (b"null", json_type),
        "another object": (b'{"base_log_id": 1}', json_type),
        "another task": (b"[[], {}, {}]", {**json_type, "headers": {**headers, "task": "other"}}),
        "cut short": (b"[[[", {**json_type, "headers": headers}),
        "other arguments": (b"[[1], {}, {}]", {**json_type, "headers": headers}),
        "more arguments": (b'[[["x"]], {"more": 1}, {}]', {**json_type, "headers": headers}),
        "wrong third part": (b'[[["third"]], {}, "x"]', {**json_type, "headers": headers}),
        "no time": (b'[[["eta"]], {}, {}]', {**json_type, "headers": {**headers, "eta": "soon"}}),
        "no id": (b'[[["id"]], {}, {}]', {**json_type, "headers": {**headers, "id": None}}),
    }
    # What is a retry but for what nobody needs of it is tried, and its envelope is none.
    buried = {what: body for what, (body, _) in garbage.items()}
    buried |= {"wrong third part": b"third", "no id": b"id"}
    worker = team.start()
    with broker.connect() as connection:
        producer = connection.Producer()
        for body, properties in garbage.values():
            producer.publish(body, exchange="", routing_key=name, **properties)
    ids = team.record(3)
    team.expect(ids, "plain")
    letters: list[bytes] = []

    def all_buried() -> bool:
        with broker.connect() as connection, connection.channel() as channel:
            dlq = Queue(f"{name}.dlq", channel=channel)
            if team.depth(dlq.name):
                letters.extend(body_of(m) for m in iter(lambda: dlq.get(no_ack=True), None))
        return len(letters) >= len(garbage)

    with suppress(pytest.fail.Exception):  # what is missing says more
        team.eventually(all_buried)
    missing = Counter(buried.values()) - Counter(letters)
    assert not [what for what, body in buried.items() if body in missing]
    assert len(letters) == len(garbage)
    assert worker.poll() is None
    team.expect(ids + team.record(2), "plain")


def test_an_event_whose_worker_process_is_killed_is_delivered_in_the_end(team: Team) -> None:
    team.start()
    ids = team.record(1, "slow")
    team.eventually(lambda: team.pids("slow_attempt"))
    (child,) = team.pids("slow_attempt")
    os.kill(child, signal.SIGKILL)
    team.expect(ids, "slow")
    assert len(team.pids("slow_attempt")) == 2


def test_a_hard_time_limit_is_a_failed_attempt_that_is_retried(
    team: Team, database: Engine
) -> None:
    team.start()
    ids = team.record(1, "overtime")
    team.expect(ids, "overtime")
    assert len(team.pids("overtime_attempt")) == 2
    with database.connect() as connection:
        name = team.queue("overtime")
        attempts = connection.scalars(
            select(DeliveryRow.attempts).where(DeliveryRow.subscription == name)
        ).all()
    assert attempts == [2]


def test_a_message_that_kills_its_worker_ends_among_the_dead_letters_and_its_batch_goes_on(
    team: Team, database: Engine
) -> None:
    team.start()
    name = team.queue("deadly")
    with broker.connect() as connection:
        connection.Producer().publish("garbage", exchange="", routing_key=name)
    with Session(database) as session:
        ids = {
            record_event(session, "deadly" if n == 2 else "harmless", {"n": n}): n for n in range(4)
        }
        session.commit()

    def ended() -> dict[UUID, str]:
        query = select(DeliveryRow.event_id, DeliveryRow.state)
        with database.connect() as connection:
            rows = connection.execute(query.where(DeliveryRow.subscription == name))
            return {row.event_id: row.state for row in rows if row.state != "retrying"}

    team.eventually(lambda: len(ended()) == len(ids))
    assert ended() == {each: "dead" if n == 2 else "delivered" for each, n in ids.items()}
    team.eventually(lambda: team.depth(f"{name}.dlq") == 2)  # what was no event, too


def test_a_message_that_ends_whole_workers_is_a_dead_letter_and_others_keep_flowing(
    team: Team, environment: Callable[..., None]
) -> None:
    environment(COS_EVENTS_REDELIVER_AFTER="1")
    worker = team.start(pool="solo")
    (lethal,) = team.record(1, "lethal")
    harmless = team.record(3, "harmless")
    deaths = 0
    while deaths < 6:
        team.eventually(lambda w=worker: w.poll() is not None or team.state("lethal", lethal))
        if team.state("lethal", lethal) == "dead":
            break
        worker.wait(120)
        deaths += 1
        worker = team.start(pool="solo", ready=False)
    assert (team.state("lethal", lethal), deaths) == ("dead", 2), team.log()
    team.expect(harmless, "lethal")


def test_a_warm_shutdown_with_a_half_gathered_batch_loses_nothing(team: Team) -> None:
    worker = team.start()
    ids = team.record(4, "patient")
    team.expect(ids, "plain")
    team.eventually(lambda: team.depth(team.queue("patient")) == 0)
    assert team.had("patient") == Counter()
    # Celery's pool may hang at a warm shutdown with tasks that no child has accepted yet.
    team.eventually(team.is_idle)
    team.stop(worker)
    assert team.had("patient") == Counter()
    team.start()
    # What a worker had in its hands comes back singly: it may have ended that worker.
    team.expect(ids, "patient")
    ids += team.record(10, "patient")
    team.expect(ids, "patient")


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_raw_bytes_in_a_redis_list_do_not_stop_a_worker(team: Team) -> None:
    name = team.queue("plain")
    info = {"exchange": "", "routing_key": name}
    surrogate = {
        "body": "\ud800",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {},
        "properties": {"delivery_info": info, "delivery_tag": "1"},
    }
    worker = team.start()
    with Redis.from_url(os.environ["BROKER_URL"]) as redis:
        for raw in (b"\xff\x00\xfe", b"not json", b"[]", b"{}", b'{"body": "x"}'):
            redis.lpush(name, raw)
        redis.lpush(name, json.dumps(surrogate))
    team.expect(team.record(3), "plain")
    assert worker.poll() is None
