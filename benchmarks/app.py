"""The Celery application of the benchmarks: one subscription that does next to nothing."""

from celery import Celery
from sqlalchemy.orm import Session

from cos_events import Envelope, install, subscriber
from cos_events.settings import get_settings

app = install(
    Celery(
        "benchmarks", broker=get_settings().broker_url, config_source={"task_ignore_result": True}
    )
)


@subscriber("stopped", batch_size=100, batch_timeout=0.05)
def stopped(messages: list[Envelope], session: Session) -> None:
    """Only the delivery rows are written."""
