"""Another team's Celery application on the same bus, with two subscriptions in trouble.

celery -A cos_events.cli.demo.app worker -Q mailer,archive
"""

from __future__ import annotations

from celery import Celery

from cos_events import Envelope, Rejected, install, subscriber
from cos_events.cli.demo.trouble import trouble
from cos_events.settings import get_settings

app = install(
    Celery("demo", broker=get_settings().broker_url, config_source={"task_ignore_result": True})
)


def _troubled_by(kind: str, message: Envelope) -> bool:
    file = trouble(kind)
    return file.exists() and file.read_text() == str(message.base_log_id)


@subscriber("mailer", autoretry_for=(ConnectionError,), retry_jitter=False)
def mailer(message: Envelope) -> None:
    """Fails once for one event, as a mail server that restarts would."""
    if _troubled_by("mail_server_restarts", message):
        trouble("mail_server_restarts").unlink()
        raise ConnectionError("the mail server restarts")


@subscriber("archive")
async def archive(message: Envelope) -> None:
    """Rejects one event until somebody mends it."""
    if _troubled_by("archive_is_broken", message):
        raise Rejected("the archive does not know this kind of event")
