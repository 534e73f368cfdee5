"""How to reach the broker, for code that speaks to it outside a Celery task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu import Connection
from kombu.pidbox import Mailbox

from cos_events import rabbitmq_transport, redis_transport
from cos_events.error_text import one_line
from cos_events.errors import BrokerAway
from cos_events.settings import get_settings, mask
from cos_events.topology import is_rabbitmq

WORKERS_READ_TIMEOUT = 10.0
"""Seconds that a worker waits for RabbitMQ's answer. Celery's loop itself waits for the confirm of
each heartbeat's event: without a bound, a connection that died silently would stop the worker for
good, and no signal would end it."""

CONTROL_SECONDS = 1.0
"""So long workers have for an answer by remote control."""

_installed: list[Celery | None] = [None]


def use(app: Celery | None) -> Celery | None:
    """Let the bus use the broker of this Celery application, or of none; returns the one before."""
    before, _installed[0] = _installed[0], app
    return before


def broker_url() -> str:
    """The broker of the installed Celery application, otherwise `BROKER_URL`."""
    if (app := _installed[0]) is None:
        return get_settings().broker_url
    urls = app.conf.broker_write_url or app.conf.broker_url
    return str(urls if isinstance(urls, str) else urls[0]).split(";")[0]


def on_rabbitmq() -> bool:
    """Whether the bus's broker is RabbitMQ; otherwise it is Redis."""
    return is_rabbitmq(broker_url())


def transport_of(url: str) -> str | None:
    """Which Kombu transport to use by default; None for what the URL's scheme means."""
    names = {
        "redis": redis_transport.NAME,
        "rediss": redis_transport.TLS_NAME,
        "amqp": rabbitmq_transport.NAME,
        "pyamqp": rabbitmq_transport.NAME,
        "amqps": rabbitmq_transport.TLS_NAME,
    }
    return names.get(url.partition("://")[0])


def transport_options(url: str) -> dict[str, Any]:
    """What makes a frozen broker fail in bounded time instead of blocking forever."""
    timeout = get_settings().wire_timeout
    if is_rabbitmq(url):
        return {
            "connect_timeout": timeout,
            "write_timeout": timeout,
            # For what a worker waits for: what its loop reads has already arrived.
            "read_timeout": max(timeout, WORKERS_READ_TIMEOUT),
            # A message for a queue that is still being declared would be lost silently.
            "confirm_publish": True,
        }
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout}


def connect(*, confirm: bool = True) -> Any:
    """A new `kombu.Connection` to the broker, not yet established.

    RabbitMQ confirms each message that is published on it, unless `confirm` is False;
    `confirm_timeout` says how long to wait.

    Typed as Any: the stubs of kombu lack `Producer.batch` and most of a channel's methods.
    """
    app, timeout = _installed[0], get_settings().wire_timeout
    options = transport_options(broker_url())
    if app is not None:
        # With its own transport options, TLS and failover; `install` saw to the timeouts.
        options |= app.conf.broker_transport_options or {}
    if "read_timeout" in options:
        options["read_timeout"] = min(options["read_timeout"], timeout)
    if "confirm_publish" in options:
        # Said either way: Celery would fill in what is left out from its own configuration.
        options["confirm_publish"] = confirm
    if app is not None:
        transport = app.conf.broker_transport or transport_of(broker_url())
        return app.connection_for_write(
            connect_timeout=timeout, transport=transport, transport_options=options
        )
    return Connection(
        broker_url(),
        transport=transport_of(broker_url()),
        connect_timeout=timeout,
        transport_options=options,
    )


@contextmanager
def connected() -> Iterator[Any]:
    """A connection that the broker has answered.

    Raises:
        BrokerAway: it does not answer, or no longer does.
    """
    try:
        with connect() as connection:
            # By itself: a login that is refused is among the errors of a channel. Each server once.
            connection.ensure_connection(max_retries=max(0, len(connection.alt) - 1))
            yield connection
    except Exception as error:
        raise BrokerAway(mask(broker_url()), one_line(error)) from error


def is_away() -> bool:
    """Whether the broker does not answer."""
    try:
        with connected():
            return False
    except BrokerAway:
        return True


def queue_depths(names: Iterable[str]) -> dict[str, int]:
    """How many messages wait in each of these queues; a queue that does not exist is absent.

    Raises:
        BrokerAway: nobody can say.
    """
    depths: dict[str, int] = {}
    with connected() as connection:
        for name in names:
            try:
                with connection.channel() as channel:
                    declared = channel.queue_declare(name, passive=True)
                depths[name] = declared.message_count
            except connection.channel_errors:
                continue
    return depths


def consumers_of(queue: str) -> list[str]:
    """The Celery workers that consume a queue, by their node names, if they answer in a second.

    Raises:
        BrokerAway: nobody can say.
    """
    conf = (_installed[0] or Celery(set_as_current=False)).conf
    with connected() as connection:
        # With Celery's own remote control a command without an application would reach no worker.
        # The stubs mistake what this returns for one of its nodes.
        mailbox: Any = Mailbox(conf.control_exchange, type="fanout")(connection)
        answers = mailbox.multi_call("active_queues", timeout=CONTROL_SECONDS)
    return sorted(
        node
        for answer in answers
        for node, queues in answer.items()
        if any(each["name"] == queue for each in queues)
    )


def delete_queues(names: Iterable[str]) -> None:
    """Delete these queues with what is in them; harmless if they do not exist."""
    with connect() as connection, connection.channel() as channel:
        # Kombu's Redis transport deletes only what this process has bound; a purged list is gone.
        delete = channel.queue_delete if on_rabbitmq() else channel.queue_purge
        for name in names:
            delete(name)
