"""The command `cos-events worker …`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import click

from cos_events.cli.servers import adopt_running
from cos_events.parent import end_with_parent

if TYPE_CHECKING:
    from celery import Celery

    from cos_events.subscribers import Subscriber

APP = "workers"
"""The Celery application that a worker runs unless another is named: COS's own."""

app_option = click.option(
    "-A",
    "--app",
    default=APP,
    show_default=True,
    envvar="COS_EVENTS_APP",
    help="The Celery application, as Celery's own -A.",
)

_CELERY_OPTIONS = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}


@click.group("worker")
def command() -> None:
    """Run a Celery worker of the bus, as `celery -A APP worker -Q …` does.

    The Celery application is COS's own `workers`; name another with -A or COS_EVENTS_APP. Options
    that are not listed are passed to Celery: --autoscale, --max-tasks-per-child, …
    """


def _listen(_context: click.Context, _option: click.Parameter, listen: str | None) -> None:
    # By the environment, so that `celery worker` alone does it too.
    if listen:
        os.environ["COS_EVENTS_METRICS_LISTEN"] = listen


def _concurrency(default: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "-c",
        "--concurrency",
        type=click.IntRange(1, 512),
        default=default,
        show_default=True,
        help="How many tasks run at once.",
    )


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--metrics-listen",
            metavar="HOST:PORT",
            callback=_listen,
            expose_value=False,
            help="Serve Prometheus on this address.",
        ),
        click.option(
            "-l", "--loglevel", default="INFO", show_default=True, help="As Celery's own -l."
        ),
        app_option,
    ):
        function = option(function)
    return function


@command.command("publisher", context_settings=_CELERY_OPTIONS)
@_concurrency(1)
@_options
@click.argument("celery_args", nargs=-1, type=click.UNPROCESSED)
def publisher(app: str, concurrency: int, loglevel: str, celery_args: Sequence[str]) -> None:
    """Publish committed events: runs the publish task and the relay.

    One is enough; several share the work.
    """
    from cos_events.topology import PUBLISH_QUEUE

    adopt_running()  # before the application reads its settings
    find_application(app)
    # What arrives while one batch goes out goes with the next; a second thread gains nothing then.
    pool = "solo" if concurrency == 1 else "threads"
    node = ["-Q", PUBLISH_QUEUE, "-P", pool, "-n", "publisher@%h"]
    _run_celery(app, concurrency, loglevel, [*node, *celery_args])


@command.command("subscriber", context_settings=_CELERY_OPTIONS)
@_concurrency(2)
@_options
@click.argument("names", nargs=-1, type=click.UNPROCESSED, metavar="[NAME]...")
def subscriber(app: str, concurrency: int, loglevel: str, names: Sequence[str]) -> None:
    """Run the handlers of these subscriptions, or of all that the application has.

    Several workers of one subscription share its events.
    """
    named = list(takewhile(lambda name: not name.startswith("-"), names))
    celery_args = names[len(named) :]
    adopt_running()  # before the application reads its settings
    subscriptions = [each.name for each in find_subscribers(app, named)]
    node = ["-Q", ",".join(subscriptions), "-n", f"{'+'.join(named) or 'subscribers'}@%h"]
    _run_celery(app, concurrency, loglevel, [*node, *celery_args])


def find_subscribers(app: str, names: Sequence[str]) -> list[Subscriber]:
    """The subscribers of these names in a Celery application; of no name, all that it has.

    Raises:
        SubscriptionError: there is no such application, or it has no such subscription, or none.
    """
    from cos_events.errors import SubscriptionError
    from cos_events.subscribers import subscribers_of

    found = find_application(app)
    found.loader.import_default_modules()
    known = subscribers_of(found)
    if not known:
        raise SubscriptionError(
            f"{app} has no subscription: declare one with @subscriber in a module that it imports"
        )
    if unknown := [name for name in names if name not in known]:
        raise SubscriptionError(
            f"{app} has no subscription {', '.join(unknown)}; it has "
            f"{', '.join(sorted(known))} (another application: -A or COS_EVENTS_APP)"
        )
    return [known[name] for name in names or sorted(known)]


def find_application(app: str) -> Celery:
    """The Celery application that `-A` names.

    Raises:
        SubscriptionError: there is none, or it was not given to `install`.
    """
    from celery import Celery
    from celery.app.utils import find_app

    from cos_events.consumer import is_installed
    from cos_events.errors import SubscriptionError

    try:
        found = find_app(app)
    except (ImportError, AttributeError) as error:
        missing = error.name if isinstance(error, ImportError) else None
        if missing and missing.partition(".")[0] not in {app.partition(each)[0] for each in ".:"}:
            # Its module is there, and what that imports is not.
            raise SubscriptionError(f"{app} cannot be imported: {error}") from error
        raise SubscriptionError(f"no Celery application {app!r} here: {error}") from error
    if not isinstance(found, Celery):
        raise SubscriptionError(f"no Celery application {app!r} here: it is {found!r}")
    if not is_installed(found):
        raise SubscriptionError(
            f"{app} was not given to cos_events.install: write app = install(Celery(…)), "
            "or name another application with -A or COS_EVENTS_APP"
        )
    return found


def _run_celery(app: str, concurrency: int, loglevel: str, args: Sequence[str]) -> None:
    from celery.bin.celery import celery

    end_with_parent()
    worker = ["-A", app, "worker", "-c", str(concurrency), "-l", loglevel, *args]
    celery.main(args=worker, prog_name="celery")
