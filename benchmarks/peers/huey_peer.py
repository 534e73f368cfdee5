"""huey: a Redis list."""

from __future__ import annotations

from typing import Any

from huey import RedisHuey

from benchmarks.peers import work

huey = RedisHuey("peers", url=work.BROKER_URL, results=False)


@huey.task(name="handle")
def handle(event: dict[str, Any]) -> None:
    work.handled(event)


def after_commit(event: dict[str, Any]) -> None:
    handle(event)
