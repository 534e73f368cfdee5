"""What a worker of an installed application reports about itself, from start to end."""

from __future__ import annotations

from typing import Any

from celery import signals
from celery.concurrency import get_implementation
from celery.concurrency.prefork import TaskPool as ProcessPool

from cos_events import telemetry
from cos_events.consumer import is_installed
from cos_events.errors import CosEventsError
from cos_events.parent import has_parent
from cos_events.settings import get_settings


@signals.celeryd_init.connect
def _answer_prometheus(instance: Any, **_: Any) -> None:
    # Before anything is counted, and before the pool's children are forked.
    listen = get_settings().metrics_listen
    # What a command of ours started counts with it, and it answers for all.
    if not listen or has_parent() or not is_installed(instance.app):
        return
    from cos_events.metrics import serve  # noqa: PLC0415 - an extra, and rarely wanted

    try:
        serve(listen)
    except CosEventsError as error:
        # Celery logs what a receiver raises and starts the worker anyway.
        raise SystemExit(f"cos-events: {error}") from error


@signals.worker_init.connect
def _trace_threads(sender: Any, **_: Any) -> None:
    if not is_installed(sender.app):
        return
    if issubclass(get_implementation(sender.pool_cls), ProcessPool):
        telemetry.load()
        signals.worker_process_init.connect(_trace_child)
    else:
        telemetry.configure("worker")


def _trace_child(**_: Any) -> None:
    telemetry.configure("worker")


@signals.worker_process_shutdown.connect
@signals.worker_shutdown.connect
def _flush(**_: Any) -> None:
    # A pool's child ends without Python's exit handlers.
    telemetry.flush()
