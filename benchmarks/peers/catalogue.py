"""The peers: how each is run, and what each guarantees."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from cos_events.embedded import BrokerName

PEERS = "benchmarks.peers"
BOTH: tuple[BrokerName, ...] = ("redis", "rabbitmq")


@dataclass(frozen=True)
class Guarantees:
    """What becomes of an event that was committed.

    Attributes:
        crash: the application dies between its commit and the enqueueing.
        broker_loss: the broker loses all it holds.
        kill: a worker is killed (-9) while it has the event.
        twice: whether a handler may have it twice.
        fan_out: how several subscribers have each event.
        dead: where an event ends whose handler fails for good.
    """

    crash: str
    broker_loss: str
    kill: str
    twice: str
    fan_out: str
    dead: str

    def cells(self) -> tuple[str, ...]:
        """In the order of the attributes."""
        return tuple(asdict(self).values())


@dataclass(frozen=True)
class Peer:
    """One library, used one way.

    Attributes:
        name: its module is `<name>_peer`.
        shown: its name for people.
        workers: the processes of its workers: of each what follows `python -m`.
        settings: in words.
        guarantees: of this way.
        brokers: with which it can work; those that need none run with each.
        requirements: which environment it runs in; None for the one of cos-events.
    """

    name: str
    shown: str
    workers: tuple[tuple[str, ...], ...]
    settings: str
    guarantees: Guarantees
    brokers: tuple[BrokerName, ...] = BOTH
    requirements: str | None = "requirements.txt"

    @property
    def module(self) -> str:
        """Where its application's hook and its worker's handler are."""
        return f"{PEERS}.{self.name}_peer"


_QUIET_CELERY = ("-l", "WARNING", "--without-mingle", "--without-gossip")
_LOST_IN_HOOK = "lost"

CATALOGUE = (
    Peer(
        "raw",
        "raw push and pop",
        ((f"{PEERS}.raw_peer",),),
        "LPUSH and BRPOP, or basic_publish without confirms and no_ack; one process",
        Guarantees(_LOST_IN_HOOK, "lost", "lost", "no", "no", "no"),
    ),
    Peer(
        "cos_events",
        "cos-events",
        (
            ("cos_events", "worker", "publisher", "-A", f"{PEERS}.cos_events_peer", *_QUIET_CELERY),
            (
                *("cos_events", "worker", "subscriber", "peers"),
                *("-A", f"{PEERS}.cos_events_peer", *_QUIET_CELERY),
            ),
        ),
        "publisher, and one subscriber worker with its default pool of 2 processes; prefetch 64",
        Guarantees(
            "kept: a row of the transaction",
            "kept: sent again from PostgreSQL",
            "RabbitMQ: again at once; Redis: by the relay",
            "yes; not with the handler's session",
            "a queue a subscription",
            "queue and ledger row, replay",
        ),
        requirements=None,
    ),
    Peer(
        "celery",
        "Celery as people write it",
        (("celery", "-A", f"{PEERS}.celery_peer", "worker", "-c", "2", *_QUIET_CELERY),),
        "`delay` in the hook, its task enqueues the handler; acks_late, 2 processes, prefetch 64",
        Guarantees(
            _LOST_IN_HOOK,
            "lost",
            "RabbitMQ: again at once; Redis: after an hour; of its pool's process alone: lost",
            "yes",
            "by hand",
            "no",
        ),
    ),
    Peer(
        "dramatiq",
        "dramatiq",
        (("dramatiq", f"{PEERS}.dramatiq_peer"),),
        "defaults: 2 processes of 8 threads; RabbitMQ with confirms",
        Guarantees(
            _LOST_IN_HOOK,
            "lost",
            "RabbitMQ: again at once; Redis: after a minute",
            "yes",
            "by hand",
            "queue, 7 days",
        ),
    ),
    Peer(
        "faststream",
        "FastStream",
        (("faststream", "run", f"{PEERS}.faststream_peer:app", "--log-level", "warning"),),
        "stream and consumer group, 100 records a read, or durable queue, prefetch 100, confirms",
        Guarantees(
            _LOST_IN_HOOK,
            "lost",
            "RabbitMQ: again at once; Redis: if a further subscriber claims it",
            "yes",
            "a group, or a queue, a subscriber",
            "RabbitMQ: its own means, if declared; Redis: stays pending",
        ),
    ),
    Peer(
        "taskiq",
        "taskiq",
        (("taskiq", "worker", f"{PEERS}.taskiq_peer:broker", "--log-level", "WARNING"),),
        "RedisStreamBroker, or AioPikaBroker with qos 100 and its quorum queue; 2 processes",
        Guarantees(
            _LOST_IN_HOOK,
            "lost",
            "RabbitMQ: again at once; Redis: after 10 minutes",
            "yes",
            "by hand",
            "no: acknowledged",
        ),
    ),
    Peer(
        "huey",
        "huey",
        (("huey.bin.huey_consumer", f"{PEERS}.huey_peer.huey", "-q", "-n"),),
        "RedisHuey without results; defaults: 1 process, 1 thread",
        Guarantees(_LOST_IN_HOOK, "lost", "lost", "no", "by hand", "no"),
        brokers=("redis",),
    ),
    Peer(
        "arq",
        "arq",
        ((f"{PEERS}.arq_peer",),),
        "10 jobs at once, no results; polls each 10 ms instead of each 500",
        Guarantees(
            _LOST_IN_HOOK, "lost", "again after its time-out (310 s)", "yes", "by hand", "no"
        ),
        brokers=("redis",),
        requirements="requirements-arq.txt",
    ),
    Peer(
        "procrastinate",
        "procrastinate",
        (
            (
                *("procrastinate", "--log-level", "warning"),
                *("--app", f"{PEERS}.procrastinate_peer.app"),
                *("worker", "--concurrency", "10", "--delete-jobs", "successful"),
            ),
        ),
        "deferred on the session's connection; 1 process, 10 jobs at once, LISTEN/NOTIFY",
        Guarantees(
            "kept: a row of the transaction",
            "has no broker",
            "stays `doing` until one's own task retries it",
            "yes",
            "by hand",
            "row `failed`",
        ),
    ),
    Peer(
        "faststream_outbox",
        "faststream-outbox, relayed",
        (("faststream", "run", f"{PEERS}.faststream_outbox_peer:app", "--log-level", "warning"),),
        "relay of 4 workers, 100 rows a claim and a delete, to FastStream as above; 1 process",
        Guarantees(
            "kept: a row of the transaction",
            "lost once relayed",
            "again after its lease (60 s); then as FastStream",
            "yes",
            "as FastStream",
            "table, opt-in; then as FastStream",
        ),
    ),
    Peer(
        "faststream_table",
        "faststream-outbox, in place",
        (("faststream", "run", f"{PEERS}.faststream_table_peer:app", "--log-level", "warning"),),
        "handler on the table: 4 workers, 100 rows a claim and a delete; 1 process",
        Guarantees(
            "kept: a row of the transaction",
            "has no broker",
            "again after its lease (60 s)",
            "yes",
            "by hand",
            "table, opt-in",
        ),
    ),
    Peer(
        "txoutbox",
        "txoutbox",
        ((f"{PEERS}.txoutbox_peer",), (f"{PEERS}.raw_peer",)),
        "without order, woken by NOTIFY; relays to the raw consumer, which acknowledges nothing",
        Guarantees(
            "kept: a row of the transaction",
            "lost once relayed",
            "again after its lease (60 s); then as its consumer",
            "yes",
            "by the broker's means",
            "row, after 10 attempts",
        ),
    ),
)
