"""The Celery application of the benchmarks: subscriptions that do next to nothing."""

import os

from celery import Celery, signals
from sqlalchemy.orm import Session

from cos_events import Envelope, install, subscriber
from cos_events.settings import get_settings

SUBSCRIPTIONS = "BENCHMARK_SUBSCRIPTIONS"
"""The environment variable with the number of subscriptions, besides `stopped`."""

app = install(
    Celery(
        "benchmarks",
        broker=get_settings().broker_url,
        config_source={"task_ignore_result": True, "worker_prefetch_multiplier": 64},
    )
)


@signals.worker_ready.connect
def _say(**_: object) -> None:
    # As Celery does, but at any log level: what it logs of each task costs time.
    print("worker ready.", flush=True)


@subscriber("stopped", batch_size=100, batch_timeout=0.05)
def stopped(messages: list[Envelope], session: Session) -> None:
    """Only the delivery rows are written."""


def names(count: int) -> list[str]:
    """What so many subscriptions are called."""
    return [f"growth_{number}" for number in range(count)]


for _name in names(int(os.environ.get(SUBSCRIPTIONS, "0"))):

    @subscriber(_name)
    def _nothing(message: Envelope) -> None:
        """Only the delivery row is written."""
