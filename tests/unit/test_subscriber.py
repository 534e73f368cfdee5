"""How a subscriber is declared, and what Celery makes of it."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, current_app

from cos_events import BaseSubscriber, Envelope, subscriber
from cos_events.errors import SubscriptionError
from cos_events.subscribers import Subscriber, subscribers_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


@pytest.fixture
def app() -> Iterator[Celery]:
    """A Celery application of the test's own, the current one meanwhile."""
    before = current_app._get_current_object()
    made = Celery("subscriber_test", broker="memory://")
    made.set_current()
    yield made
    before.set_current()
    made.close()


@pytest.fixture
def sent(app: Celery, monkeypatch) -> list[tuple[str, Any, Any]]:
    """The control commands that workers would get."""
    commands: list[tuple[str, Any, Any]] = []

    def broadcast(command: str, arguments=None, destination=None, **_: Any) -> None:
        commands.append((command, (arguments or {}).get("queue"), destination))

    monkeypatch.setattr(app.control, "broadcast", broadcast)
    return commands


@pytest.fixture
def declared(app: Celery, unique: Callable[[str], str]) -> Callable[..., Subscriber]:
    """Declare a subscriber under a fresh name, and find it on the application."""

    def declare(target: Any, **options: Any) -> Subscriber:
        name = unique("test")
        assert subscriber(name, **options)(target) is target
        return subscribers_of(app)[name]

    return declare


def listen(message: Envelope) -> None:
    """What a subscriber does."""


async def listen_later(message: Envelope) -> None:
    """The same, as a coroutine."""


def write(message: Envelope, session: Any) -> None:
    """It wants the session too."""


def test_a_function_stays_what_it_is_and_becomes_a_subscriber(declared) -> None:
    made = declared(listen)
    assert made.handle is listen
    assert (made.wants_session, made.batch_size, made.batch_timeout) == (False, 1, 0.5)
    assert made.subscription.wants("any", "thing")


def test_a_coroutine_function_is_a_subscriber(declared) -> None:
    assert inspect.iscoroutinefunction(declared(listen_later).handle)


def test_a_parameter_session_asks_for_the_session(declared) -> None:
    assert declared(write).wants_session


def test_a_class_becomes_one_instance_whose_method_handles(declared) -> None:
    class Audit(BaseSubscriber):
        made = 0

        def __init__(self) -> None:
            Audit.made += 1

        def process_message(self, message: Envelope, session: Any) -> bool:
            return True

    made = declared(Audit)
    assert Audit.subscriber is made
    assert isinstance(made.handle.__self__, Audit)
    assert made.handle.__name__ == "process_message"
    assert made.wants_session
    assert Audit.made == 1


def test_a_class_with_batches_is_called_by_process_batch(declared) -> None:
    class Audit(BaseSubscriber):
        async def process_batch(self, messages: list[Envelope]) -> None:
            """All of them at once."""

    made = declared(Audit, batch_size=20, batch_timeout=2)
    assert made.handle.__name__ == "process_batch"
    assert (made.batch_size, made.batch_timeout, made.wants_session) == (20, 2.0, False)


def test_filters_may_be_one_name_or_several(declared) -> None:
    one = declared(listen, modules="cc", event_types="event_log").subscription
    assert (one.modules, one.event_types) == (frozenset({"cc"}), frozenset({"event_log"}))
    two = declared(listen, modules=["cc", "pem"], event_types=("event_log",)).subscription
    assert two.modules == {"cc", "pem"}


def test_the_celery_task_has_the_name_and_carries_the_options(app, declared) -> None:
    made = declared(
        listen,
        rate_limit="5/m",
        time_limit=30,
        soft_time_limit=20,
        store_errors_even_if_ignored=True,
        max_retries=2,
    )
    task = app.tasks[made.name]
    assert task.name == made.name
    assert (task.rate_limit, task.time_limit, task.soft_time_limit) == ("5/m", 30, 20)
    assert task.store_errors_even_if_ignored is True
    assert task.subscriber is made


def test_the_celery_task_acknowledges_after_the_work_and_has_no_retry_limit_of_its_own(
    app, declared
) -> None:
    task = app.tasks[declared(listen, max_retries=2).name]
    assert (task.acks_late, task.reject_on_worker_lost, task.ignore_result) == (True, True, True)
    assert task.max_retries is None


def test_retry_options_make_the_policy(declared) -> None:
    policy = declared(
        listen,
        autoretry_for=(OSError,),
        max_retries=2,
        retry_backoff=3,
        retry_backoff_max=60,
        retry_jitter=False,
    ).retry_policy
    assert (policy.autoretry_for, policy.max_retries, policy.retry_backoff) == ((OSError,), 2, 3)
    assert (policy.retry_backoff_max, policy.retry_jitter) == (60, False)


def test_a_task_of_the_application_is_no_subscriber(app) -> None:
    @app.task(name="plain")
    def plain() -> None:
        """An ordinary task."""

    assert "plain" in app.tasks
    assert "plain" not in subscribers_of(app)


@pytest.mark.parametrize("name", ["", "Audit", "a-b", "a\n", None])
def test_a_wrong_name_is_refused(name) -> None:
    with pytest.raises(SubscriptionError, match="cannot name a subscription"):
        subscriber(name)


def test_the_queue_of_an_applications_own_tasks_is_no_name() -> None:
    assert Celery(set_as_current=False).conf.task_default_queue == "celery"
    with pytest.raises(SubscriptionError, match="'celery' cannot name a subscription: it is the"):
        subscriber("celery")


def test_wrong_filters_are_refused() -> None:
    with pytest.raises(SubscriptionError, match="'CC' cannot name a module"):
        subscriber("audit", modules="CC")
    with pytest.raises(SubscriptionError, match="audit matches no event"):
        subscriber("audit", event_types=[])
    with pytest.raises(SubscriptionError, match="'x y' cannot name"):
        subscriber("audit", event_types=["event_log", "x y"])


@pytest.mark.parametrize(
    "options",
    [
        *({"batch_size": 0}, {"batch_size": -1}, {"batch_timeout": 0}, {"batch_timeout": -1}),
        *({"batch_size": "2"}, {"batch_size": True}, {"batch_timeout": "1"}),
    ],
)
def test_a_batch_of_nothing_is_refused(options) -> None:
    with pytest.raises(
        SubscriptionError,
        match="audit: batch_(size must be 1 or more|timeout must be more than 0), not",
    ):
        subscriber("audit", **options)


def test_a_name_is_taken_once_and_both_places_are_named(app, unique) -> None:
    name = unique("test")
    subscriber(name)(listen)
    with pytest.raises(SubscriptionError) as refused:
        subscriber(name)(write)
    assert f"subscription {name!r} is declared twice" in str(refused.value)
    assert f"{__name__}.listen" in str(refused.value)
    assert f"{__name__}.write" in str(refused.value)
    assert subscribers_of(app)[name].handle is listen


def handle_bit_by_bit(message: Envelope) -> Iterator[int]:
    yield 1


async def handle_bit_by_bit_later(message: Envelope) -> AsyncIterator[int]:
    yield 1


async def write_later(message: Envelope, session: "AsyncSession") -> None: ...


class NothingToDo(BaseSubscriber):
    """It has neither method."""


class Batches(BaseSubscriber):
    """It has one of them."""

    def process_batch(self, messages: list[Envelope]) -> None: ...


class Singles(BaseSubscriber):
    """It has the other one."""

    def process_message(self, message: Envelope) -> None: ...


class Foreign:
    """No subscriber at all."""

    def process_message(self, message: Envelope) -> None: ...


@pytest.mark.parametrize(
    ("target", "options", "sentence"),
    [
        (lambda: None, {}, "the handler must take one message"),
        (lambda _message, _other: None, {}, "the handler"),
        (lambda session: None, {}, "the handler"),
        (NothingToDo, {}, r"NothingToDo has no process_message\(self, message\)"),
        (NothingToDo, {"batch_size": 2}, r"NothingToDo has no process_batch\(self, messages\)"),
        (Batches, {}, r"\(self, message\); its process_batch is for a batch_size of more than 1"),
        (Singles, {"batch_size": 2}, r"its process_message is for a batch_size of 1"),
        (Foreign, {}, "Foreign must be a BaseSubscriber, or a function"),
        (handle_bit_by_bit, {}, "must not yield"),
        (handle_bit_by_bit_later, {}, "must not yield"),
        (write_later, {}, "a plain Session, even in a coroutine"),
        (listen, {"max_retry": 3}, "no option max_retry; did you mean max_retries?"),
        (listen, {"event_type": "x"}, "no option event_type; did you mean event_types?"),
        (listen, {"retry_kwargs": {"max_retries": 3}}, "no option retry_kwargs"),
        (listen, {"rate_limits": "1/s"}, "no option rate_limits; did you mean rate_limit?"),
        (listen, {"autoretry_for": ValueError}, "autoretry_for must be a tuple of exception"),
        (listen, {"autoretry_for": ("OSError",)}, "autoretry_for must be a tuple of exception"),
        (
            listen,
            {"rate_limit": "fast"},
            "rate_limit must be a number per second, or a rate such as",
        ),
        (listen, {"max_retries": -1}, "max_retries must be a number, 0 or more, not -1"),
        (listen, {"max_deaths": 1}, "max_deaths must be a number, 2 or more, not 1"),
        (listen, {"time_limit": "x"}, "time_limit must be a number of seconds above 0, not 'x'"),
        (
            listen,
            {"soft_time_limit": 0},
            "soft_time_limit must be a number of seconds above 0, not 0",
        ),
    ],
    ids=[
        "no parameter",
        "two messages",
        "only the session",
        "no process_message",
        "no process_batch",
        "process_batch without a batch",
        "process_message with a batch",
        "no BaseSubscriber",
        "a generator",
        "an asynchronous generator",
        "an asynchronous session",
        "a misspelt option of the policy",
        "a misspelt option of our own",
        "an option of Celery's autoretry",
        "a misspelt option of Celery",
        "one exception",
        "an exception's name",
        "a rate in words",
        "fewer retries than none",
        "one death",
        "a time limit in words",
        "a soft time limit of nothing",
    ],
)
def test_what_cannot_work_is_refused_and_leaves_no_task(app, unique, target, options, sentence):
    name = unique("test")
    with pytest.raises(SubscriptionError, match=sentence):
        subscriber(name, **options)(target)
    assert name not in app.tasks


def test_consuming_is_started_and_stopped_by_a_command_to_running_workers(declared, sent) -> None:
    made = declared(listen)
    made.start_consuming()
    made.stop_consuming(["worker@here"])
    assert sent == [
        ("registered", None, None),
        ("add_consumer", made.name, []),
        ("cancel_consumer", made.name, ["worker@here"]),
    ]


def test_a_class_starts_and_stops_consuming_too(declared, sent) -> None:
    class Audit(BaseSubscriber):
        def process_message(self, message: Envelope) -> None: ...

    made = declared(Audit)
    Audit.stop_consuming()
    Audit.start_consuming(["worker@here"])
    assert sent == [
        ("cancel_consumer", made.name, None),
        ("add_consumer", made.name, ["worker@here"]),
    ]


@pytest.mark.parametrize("option", ["acks_late", "ignore_result", "expires", "bind", "queue"])
def test_an_option_on_which_the_promise_rests_is_refused(app, unique, option) -> None:
    name = unique("test")
    with pytest.raises(SubscriptionError, match=f"{option} cannot be set for a subscription"):
        subscriber(name, **{option: 1})(listen)
    assert name not in app.tasks
