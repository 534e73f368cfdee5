"""How an application declares what it does with events: `@subscriber`, on a function or a class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar

from celery import Celery, shared_task, signals
from celery.app.task import Task
from celery.utils.time import rate

from cos_events.delivery import deliver
from cos_events.errors import DeliveryFailed, SubscriptionError
from cos_events.ordering import Order, OrderBy
from cos_events.retry import Errors, RetryPolicy, check_errors
from cos_events.store.subscriptions import StartFrom
from cos_events.subscribers import Subscriber, subscribers_of
from cos_events.subscription import Subscription
from cos_events.telemetry import consuming

Declared = TypeVar("Declared", bound="Callable[..., Any] | type[BaseSubscriber]")


class BaseSubscriber:
    """Class form of a subscriber: one instance per process handles its messages.

    Declare it with `@subscriber("name", …)`, and give it `process_message(self, message)`, or, with
    `batch_size`, `process_batch(self, messages)`; either may also take a `session`, and may be a
    coroutine. Returning False, or raising, is a failure; anything else is success.
    """

    process_message: Callable[..., Any]
    process_batch: Callable[..., Any]
    subscriber: ClassVar[Subscriber]

    @classmethod
    def start_consuming(cls, destination: Sequence[str] | None = None) -> None:
        """Have running workers consume this subscription's queue; see `Subscriber`."""
        cls.subscriber.start_consuming(destination)

    @classmethod
    def stop_consuming(cls, destination: Sequence[str] | None = None) -> None:
        """Have running workers stop consuming this subscription's queue; see `Subscriber`."""
        cls.subscriber.stop_consuming(destination)


def subscriber(  # noqa: PLR0913 - what a subscription may ask for
    name: str,
    *,
    modules: Iterable[str] | None = None,
    event_types: Iterable[str] | None = None,
    batch_size: int = 1,
    batch_timeout: float = 0.5,
    pause_on: Errors | type[BaseException] = (),
    order_by: OrderBy | None = None,
    start_from: StartFrom = "now",
    **task_options: Any,
) -> Callable[[Declared], Declared]:
    """Subscribe a function, a coroutine or a `BaseSubscriber` to committed events.

    The handler is called with the `Envelope`. If it has a parameter `session`, it gets a SQLAlchemy
    session whose transaction also holds the delivery row, so that its effect in that database
    happens exactly once; it must not commit. Otherwise it runs at least once. What it does after
    that session has committed (an `after_commit` hook, a NOTIFY) may be repeated: the commits of
    several events may reach the disk together, and if PostgreSQL crashes first, they run again.

    Args:
        name: of the subscription, its durable queue and its Celery task.
        modules: the source modules that it wants; all by default.
        event_types: the event types that it wants; all by default.
        batch_size: above 1, the handler is called with a list of up to that many messages; if that
            call fails, each of its messages is tried by itself.
        batch_timeout: seconds that the first message of a batch waits for more.
        pause_on: errors that mean that the handler's own database or server is down. They use up no
            attempt: the subscription is paused, and one event probes after 1, 2, 4 … 300 seconds.
        order_by: events with the same key are handled one after another, in the order in which
            they were recorded; other keys in parallel; a failing key holds up only itself, until
            its event is delivered or a dead letter. A field such as `request_id` or
            `data.customer`, or a function of the envelope. Not with `batch_size`.
        start_from: where a new subscription starts: `now`, `beginning` (all the history that is
            kept), or an aware `datetime`. History is delivered first to last while live events
            arrive.
        **task_options: any option of a Celery task: those of `RetryPolicy` (`autoretry_for`,
            `max_retries`, `retry_backoff`, …), `rate_limit`, `time_limit`, `soft_time_limit`, …

    Raises:
        SubscriptionError: the name is taken or not valid, an option is wrong, or the handler cannot
            be called with a message.
    """
    declared = Subscription(name, _names(modules), _names(event_types))
    _check(declared, batch_size, batch_timeout, order_by, start_from)
    outages = pause_on if isinstance(pause_on, tuple | list) else (pause_on,)
    check_errors(f"{name}: pause_on", outages)
    order = None if order_by is None else Order(name, order_by)

    def declare(target: Declared) -> Declared:
        handle = _handler_of(target, batched=batch_size > 1)
        if inspect.isgeneratorfunction(handle) or inspect.isasyncgenfunction(handle):
            raise SubscriptionError(f"{name}: the handler must not yield: nobody would resume it")
        signature = inspect.signature(handle)
        wants_session = "session" in signature.parameters
        if wants_session and "AsyncSession" in str(signature.parameters["session"].annotation):
            raise SubscriptionError(
                f"{name}: a handler's session is a plain Session, even in a coroutine"
            )
        try:
            signature.bind(None, **({"session": None} if wants_session else {}))
        except TypeError as error:
            raise SubscriptionError(
                f"{name}: the handler must take one message, and optionally a session: {error}"
            ) from None
        try:
            policy = RetryPolicy.taken_from(task_options)
        except SubscriptionError as error:
            raise SubscriptionError(f"{name}: {error}") from None
        made = Subscriber(
            declared,
            handle,
            wants_session,
            batch_size,
            float(batch_timeout),
            policy,
            tuple(outages),
            order,
            start_from,
        )
        _declare_task(made, f"{target.__module__}.{target.__qualname__}", task_options)
        if isinstance(target, type):
            target.subscriber = made  # type: ignore[attr-defined] # _handler_of saw to it
        return target

    return declare


_origins: dict[str, str] = {}

_OWN_OPTIONS = {
    *("name", "base", "bind", "subscriber", "acks_late", "reject_on_worker_lost"),
    *("ignore_result", "expires", "queue", "exchange", "routing_key", "serializer"),
    *("acks_on_failure_or_timeout", "throws"),
}
"""Task options that the promise depends on: an event may not expire, or be acknowledged early."""


def _declare_task(made: Subscriber, origin: str, options: dict[str, Any]) -> None:
    if ours := sorted(_OWN_OPTIONS & options.keys()):
        raise SubscriptionError(f"{made.name}: {', '.join(ours)} cannot be set for a subscription")
    for unknown in (option for option in options if not hasattr(Task, option)):
        parameters = inspect.signature(subscriber).parameters.values()
        own = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
        of_tasks = [option for option in dir(Task) if option[0] != "_"]
        near = get_close_matches(unknown, [*own, *RetryPolicy.options(), *of_tasks], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SubscriptionError(f"{made.name}: there is no option {unknown}{hint}")
    _check_limits(made.name, options)
    if _origins.setdefault(made.name, origin) != origin:
        raise SubscriptionError(
            f"subscription {made.name!r} is declared twice: "
            f"by {_origins[made.name]} and by {origin}; rename one of them"
        )

    def run(task: Task[Any, Any], raws: list[str]) -> None:
        with consuming(made.name, raws, task.request):
            deliver(task, made, raws)

    declare: Callable[..., Any] = shared_task
    declare(
        name=made.name,
        bind=True,
        subscriber=made,
        acks_late=True,
        reject_on_worker_lost=True,
        acks_on_failure_or_timeout=True,
        ignore_result=True,
        # Already logged, with what a person needs: Celery need not repeat it with a traceback.
        throws=(DeliveryFailed,),
        Request="cos_events.consumer:DeliveryRequest",
        # The policy counts for each message; Celery's own limit must not be a second one.
        max_retries=None,
        **options,
    )(run)


def _check(
    declared: Subscription,
    batch_size: int,
    batch_timeout: float,
    order_by: OrderBy | None,
    start_from: StartFrom,
) -> None:
    name = declared.name
    if name == "celery":
        raise SubscriptionError(
            "'celery' cannot name a subscription: it is the queue of an application's own tasks; "
            "give it another name"
        )
    if frozenset() in (declared.modules, declared.event_types):
        raise SubscriptionError(
            f"{name} matches no event: omit modules and event_types to match all"
        )
    if not _is_number(batch_size, int) or batch_size < 1:
        raise SubscriptionError(f"{name}: batch_size must be 1 or more, not {batch_size!r}")
    if not _is_number(batch_timeout, int | float) or batch_timeout <= 0:
        raise SubscriptionError(f"{name}: batch_timeout must be more than 0, not {batch_timeout!r}")
    if order_by is not None and batch_size > 1:
        raise SubscriptionError(f"{name}: order_by goes with batch_size 1 only")
    if start_from not in ("now", "beginning") and getattr(start_from, "tzinfo", None) is None:
        raise SubscriptionError(
            f"{name}: start_from must be 'now', 'beginning' or an aware datetime, "
            f"not {start_from!r}"
        )


def _check_limits(name: str, options: dict[str, Any]) -> None:
    """Refuse what would stop a worker at its start, or at the first message."""
    for option in ("time_limit", "soft_time_limit"):
        limit = options.get(option)
        if limit is not None and (not _is_number(limit, int | float) or limit <= 0):
            raise SubscriptionError(
                f"{name}: {option} must be a number of seconds above 0, not {limit!r}"
            )
    given: Any = options.get("rate_limit")
    try:
        rate(given)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise SubscriptionError(
            f"{name}: rate_limit must be a number per second, or a rate such as '100/m', not "
            f"{given!r}"
        ) from None


@signals.celeryd_init.connect
def _require_install(instance: Any, **_: Any) -> None:
    # By name: what `install` adds imports this module, not the other way round.
    app: Celery = instance.app
    steps = {step.__name__ for step in app.steps["consumer"]}
    if "DeliveryStep" not in steps and (names := ", ".join(sorted(subscribers_of(app)))):
        raise SystemExit(
            f"cos-events: this Celery application has subscriptions ({names}), but was not given "
            "to cos_events.install: write app = install(Celery(…))"
        )


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _names(names: Iterable[str] | None) -> frozenset[str] | None:
    if isinstance(names, str):
        return frozenset([names])
    return None if names is None else frozenset(names)


def _handler_of(target: Any, *, batched: bool) -> Callable[..., Any]:
    if not inspect.isclass(target):
        return target  # type: ignore[no-any-return]
    method, other = "process_message", "process_batch"
    if batched:
        method, other = other, method
    if not issubclass(target, BaseSubscriber):
        raise SubscriptionError(f"{target.__name__} must be a BaseSubscriber, or a function")
    if not hasattr(target, method):
        size = "1" if batched else "more than 1"
        hint = f"; its {other} is for a batch_size of {size}" if hasattr(target, other) else ""
        raise SubscriptionError(
            f"{target.__name__} has no {method}(self, message{'s' * batched}){hint}"
        )
    return getattr(target(), method)  # type: ignore[no-any-return]
