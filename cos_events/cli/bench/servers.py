"""Private servers with the product's defaults, and the processes that work on them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from cos_events.cli.bench import observer
from cos_events.cli.bench.app import SINGLE, SUBSCRIPTIONS
from cos_events.cli.bench.marks import Marks
from cos_events.cli.bench.worker import FOLDER, HANDLED
from cos_events.cli.processes import Program, Spec, running, worker
from cos_events.cli.servers import use
from cos_events.embedded import (
    BrokerName,
    EmbeddedPostgres,
    EmbeddedRabbitMQ,
    EmbeddedValkey,
    own_folder,
)
from cos_events.embedded.server import Server
from cos_events.store.engine import get_engine
from cos_events.store.migrations import upgrade

APP = "cos_events.cli.bench.app"


@dataclass(frozen=True)
class Stage:
    """What a measurement works with.

    Attributes:
        engine: on the database.
        broker: the server that is the broker; Redis is the channel too.
        handled: when each event was handled.
        heard: when each event was heard on its channel.
        processes: of the bus, by name: `publisher`, and one for each subscription.
        folder: with logs.
    """

    engine: Engine
    broker: Server
    handled: Marks
    heard: Marks
    processes: dict[str, Program]
    folder: Path


@contextmanager
def stage(broker: BrokerName, events: int) -> Iterator[Stage]:
    """Servers, a publisher, a worker for each subscription and two observers; then nothing.

    Args:
        broker: which one is the broker.
        events: how many event numbers there are.

    Raises:
        EmbeddedServerError: a server could not be started; the text says what to do.
        CosEventsError: a process could not.
    """
    with own_folder() as home, ExitStack() as endings:
        postgres = EmbeddedPostgres(home.path / "postgres", secrets.token_urlsafe(16))
        valkey = EmbeddedValkey(home.path / "redis", secrets.token_urlsafe(16))
        servers: list[Server] = [postgres, valkey]
        broker_server: Server = valkey
        if broker == "rabbitmq":
            broker_server = EmbeddedRabbitMQ(home.path / "broker", secrets.token_urlsafe(16))
            servers.append(broker_server)
        for server in servers:
            endings.callback(server.stop)
            server.start()
        use(DATABASE_URL=postgres.url, REDIS_URL=valkey.url, BROKER_URL=broker_server.url)
        logs = home.path / "logs"
        logs.mkdir()
        os.environ[FOLDER] = os.environ["TMPDIR"] = str(logs)
        handled, heard = (Marks.make(logs / name, events) for name in (HANDLED, observer.HEARD))
        upgrade(get_engine())
        started = endings.enter_context(running(logs, _specs()))
        processes = {each.name: each for each in started}
        yield Stage(get_engine(), broker_server, handled, heard, processes, logs)


def _specs() -> list[Spec]:
    options = ("-A", APP, "-l", "WARNING", "--without-mingle", "--without-gossip")
    return [
        worker("publisher", "publisher", *options),
        *(worker(name, "subscriber", name, "-n", f"{name}@%h", *options) for name in SUBSCRIPTIONS),
        Spec("channel", [observer.__name__, "channel", SINGLE], observer.READY),
        Spec("queue", [observer.__name__, "queue"], observer.READY),
    ]
