"""Lets any Celery application publish and consume: `install(app)`."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from amqp import AccessRefused
from celery import Celery, signals
from celery.utils.text import str_to_list
from kombu import Connection, Queue

from cos_events import (
    broker,
    decompression,  # noqa: F401 - bounds what messages become
    redis_transport,
    worker_telemetry,  # noqa: F401 - listens to the worker's signals
)
from cos_events.consumer import DeliveryStep, GossipStep, RelayStep, is_installed
from cos_events.errors import BrokerAway, ConfigurationError, CosEventsError, SubscriptionError
from cos_events.publisher import publish  # noqa: F401 - the task, which each application has
from cos_events.pubsub.clients import make_client
from cos_events.settings import get_settings, mask
from cos_events.store import subscriptions
from cos_events.store.engine import explained, get_engine
from cos_events.subscribers import subscribers_of
from cos_events.topology import PUBLISH_QUEUE, publish_queue, subscription_queue

logger = logging.getLogger(__name__)


def install(app: Celery) -> Celery:
    """Make a Celery application part of the bus.

    Its workers may then consume the publish task's queue and subscriptions' queues, in addition to
    their own tasks.

    What the application has configured stays; only what it left open is filled in. The broker is
    the application's (if several are installed in one process, the last one's); the database is
    `DATABASE_URL`, the channel `REDIS_URL`.

    Args:
        app: any Celery application; call this where it is created.

    Returns:
        The same application.
    """
    broker.use(app)
    app.steps["consumer"].update({DeliveryStep, GossipStep, RelayStep})
    app.add_defaults(lambda: _DEFAULTS)
    app.on_after_configure.connect(_bound_waiting, weak=False)
    return app


def register_subscriptions(app: Celery) -> None:
    """Register the application's subscriptions for publishers; workers do so when they start.

    Raises:
        SchemaMissing: the database has no cos-events tables.
        DatabaseAway: it cannot be reached.
    """
    declared = subscribers_of(app)
    with explained(), get_engine().begin() as connection:
        subscriptions.register(
            connection,
            [each.subscription for each in declared.values()],
            {name: each.start_from for name, each in declared.items()},
        )


def _bound_waiting(sender: Celery, **_: Any) -> None:
    """Let a frozen broker fail in bounded time, unless the application says otherwise."""
    conf = sender.conf
    bounds = broker.transport_options(broker.broker_url())
    conf.broker_transport_options = {**bounds, **(conf.broker_transport_options or {})}


_DEFAULTS = {
    "broker_connection_retry_on_startup": True,
    # Celery's hundred tries take three quarters of an hour, and then the worker would be gone.
    "broker_connection_max_retries": None,
    # A smaller prefetch after a reconnect would keep a batch from ever filling.
    "worker_enable_prefetch_count_reduction": False,
    # What is running continues; the ledger makes its redelivered copy run nothing.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
}


@signals.worker_init.connect
def _spare_collections(sender: Any, **_: Any) -> None:
    if is_installed(sender.app):
        signals.worker_process_init.connect(_freeze)
        signals.worker_ready.connect(_freeze)


def _freeze(**_: Any) -> None:
    # What is there at the start stays. Otherwise each full collection would go through it, which
    # stops a worker for 100 ms.
    gc.freeze()


def _check_content(app: Celery) -> None:
    accepted = app.conf.accept_content
    if accepted is not None and not {"json", "application/json"} & set(accepted):
        raise ConfigurationError(
            f"accept_content={accepted!r} of this application has no 'json': add it, or its worker "
            "throws away what the bus sends"
        )


def _check_login() -> None:
    """Refuse what RabbitMQ refuses: Celery, which waits for all else, would end in a traceback."""
    try:
        with broker.connected():
            pass
    except BrokerAway as away:
        if isinstance(away.__cause__, AccessRefused):
            raise


def _compare_queues(app: Celery, consumed: Iterable[str]) -> None:
    """Refuse a subscription that has no handler here; say so if a queue is almost one of the bus.

    Celery makes a queue of any name that `-Q` has, and deletes what it knows no task for.
    """
    with explained(), get_engine().connect() as connection:
        known = [each.name for each in subscriptions.load(connection)]
    ours = subscribers_of(app)
    for name in consumed:
        if name in known and name not in ours:
            raise SubscriptionError(
                f"{name} is a subscription whose handler this application does not have, or does "
                "not import: Celery would delete its events; add its module to `imports`"
            )
        meant = get_close_matches(name, [PUBLISH_QUEUE, *known], 1, cutoff=0.8)
        if meant and name not in app.amqp.queues:
            logger.warning(
                "this worker consumes a queue %r that nobody has declared: did you mean %r?",
                *(name, meant[0]),
            )


def _compare_brokers() -> None:
    """Warn if a process without a Celery application would use another broker than this worker."""
    ours, theirs = broker.broker_url(), get_settings().broker_url
    if Connection(ours).as_uri() != Connection(theirs).as_uri():
        logger.warning(
            "this worker's broker is %s, but BROKER_URL is %s: make them the same, for the "
            "cos-events commands and for processes that only record events",
            *(mask(ours), mask(theirs)),
        )


@signals.celeryd_init.connect
def _prepare_worker(instance: Any, options: dict[str, Any], **_: Any) -> None:
    app: Celery = instance.app
    if not is_installed(app):
        return
    # First: the transport decides which queues acknowledge.
    _choose_transport(app)
    consumed: list[str] | None = str_to_list(options.get("queues"))  # type: ignore[arg-type] # or None
    # On RabbitMQ Celery complains of each that is not there yet.
    ours = [each for each in _queues(app) if consumed is None or each.name in consumed]
    for queue in ours:
        app.amqp.queues.select_add(queue)
    _compare_brokers()
    try:
        if ours:
            _check_content(app)
        # Each publish task would fail by a REDIS_URL that cannot be used.
        make_client().close()
        if broker.on_rabbitmq():
            _check_login()
        register_subscriptions(app)
        _compare_queues(app, consumed or ())
    except CosEventsError as error:
        # Celery logs what a receiver raises and starts the worker anyway.
        raise SystemExit(f"cos-events: {error}") from error


def _choose_transport(app: Celery) -> None:
    # In workers only: Flower's page of the broker knows Kombu's own transports alone.
    if app.conf.broker_transport is None:
        app.conf.broker_transport = broker.transport_of(broker.broker_url())


def _queues(app: Celery) -> list[Queue]:
    """The publish task's, and that of each subscription which this application has."""
    # On Redis, acknowledging one takes two trips; Kombu's own transport would do it anyway.
    no_ack = issubclass(app.connection_for_read().get_transport_cls(), redis_transport.Transport)
    rabbitmq = broker.on_rabbitmq()
    # Publishers bind them to their modules: they know which are holding.
    queues = [subscription_queue(each, (), rabbitmq=rabbitmq) for each in subscribers_of(app)]
    return [publish_queue(no_ack=no_ack), *queues]
