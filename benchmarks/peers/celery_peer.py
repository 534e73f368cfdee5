"""Celery as people write it: `delay` in the hook, and the task enqueues the handler."""

from __future__ import annotations

from typing import Any

from celery import Celery

from benchmarks.peers import work

app = Celery(
    "peers",
    broker=work.BROKER_URL,
    config_source={
        "task_ignore_result": True,
        "task_acks_late": True,
        "worker_prefetch_multiplier": 64,
    },
)


@app.task(name="peers.publish")
def publish(event: dict[str, Any]) -> None:
    handle.delay(event)


@app.task(name="peers.handle")
def handle(event: dict[str, Any]) -> None:
    work.handled(event)


def after_commit(event: dict[str, Any]) -> None:
    publish.delay(event)
