"""A Celery application with a subscription, which nobody gave to `install`."""

from celery import Celery

from cos_events import Envelope, subscriber
from cos_events.settings import get_settings

app = Celery("uninstalled", broker=get_settings().broker_url)


@subscriber("forgotten")
def forgotten(message: Envelope) -> None:
    """Nobody calls it."""
