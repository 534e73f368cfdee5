"""A subscription together with the code behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery, current_app

from cos_events.ordering import Order
from cos_events.retry import Errors, RetryPolicy
from cos_events.store.subscriptions import StartFrom
from cos_events.subscription import Subscription


@dataclass(frozen=True)
class Subscriber:
    """A subscription and the code behind it.

    Attributes:
        subscription: which events it wants.
        handle: called with one message, or with a list of them if `batch_size` is above 1.
        wants_session: `handle` takes a `session`, and its work commits with the delivery row.
        batch_size: the most messages of one call.
        batch_timeout: seconds that the first message of a batch waits for the others.
        retry_policy: what follows a failure.
        pause_on: the errors that mean an outage of the subscriber's own servers.
        order: the order by key, if it asks for one.
        start_from: where in the history it begins.
    """

    subscription: Subscription
    handle: Callable[..., Any]
    wants_session: bool
    batch_size: int
    batch_timeout: float
    retry_policy: RetryPolicy
    pause_on: Errors = ()
    order: Order | None = None
    start_from: StartFrom = "now"

    @property
    def name(self) -> str:
        """Of the subscription, its queue and its task."""
        return self.subscription.name

    def start_consuming(self, destination: Sequence[str] | None = None) -> None:
        """Have running workers consume the queue: those named, or all that know the task."""
        current_app.control.add_consumer(self.name, destination=destination or self._workers())

    def stop_consuming(self, destination: Sequence[str] | None = None) -> None:
        """Have running workers stop consuming the queue: its messages wait, on the broker."""
        current_app.control.cancel_consumer(self.name, destination=destination)

    def _workers(self) -> list[str]:
        registered = current_app.control.inspect().registered() or {}
        return [node for node, tasks in registered.items() if self.name in tasks]


def subscribers_of(app: Celery) -> dict[str, Subscriber]:
    """The subscribers declared for this Celery application, by name."""
    found = (getattr(task, "subscriber", None) for task in app.tasks.values())
    return {each.name: each for each in found if isinstance(each, Subscriber)}
