"""Moments of an event's way at which a process can be killed, by name.

Nothing of this is in the product's code: a process that `cos_events.faults.entry` starts wraps the
functions named here. What is armed, fired and reached are files in a folder, so that any process of
a run can say and see it; one of them takes each shot.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from cos_events.faults.processes import note_killed

Scope = Literal["process", "group"]
"""Who dies: the process that is there, or its worker with all of its pool."""


@dataclass(frozen=True, slots=True)
class KillPoint:
    """Just before, or just after, a call of one of some functions.

    Attributes:
        functions: each as `module:name`, or `module:Class.name`, below `cos_events`; the module is
            the one where its callers look it up.
        after: the call has returned; otherwise it has not begun.
    """

    functions: tuple[str, ...]
    after: bool

    def find(self) -> list[tuple[Any, str]]:
        """Who has each of the functions as an attribute, and by which name."""
        found = []
        for each in self.functions:
            module, _, path = each.partition(":")
            owner: Any = import_module(f"cos_events.{module}")
            *outer, name = path.split(".")
            for attribute in outer:
                owner = getattr(owner, attribute)
            getattr(owner, name)
            found.append((owner, name))
        return found


def _before(*functions: str) -> KillPoint:
    return KillPoint(functions, after=False)


def _after(*functions: str) -> KillPoint:
    return KillPoint(functions, after=True)


_SEND_TO_QUEUE = (
    "broadcast.redis:RedisWire.send_to_queue",
    "broadcast.rabbitmq:RabbitMQWire.send_to_queue",
)

KILL_POINTS = {
    "application.after_commit": _before("capture:_hand_over"),
    "dispatcher.before_send": _before("dispatcher:PublishTaskSender.__call__"),
    "dispatcher.after_send": _after("dispatcher:PublishTaskSender.__call__"),
    "publisher.before_claim": _before("store.outbox:claim"),
    "publisher.after_claim": _after("store.outbox:claim"),
    "publisher.before_broker": _before("broadcast.broadcaster:Broadcaster.broadcast"),
    "publisher.after_broker": _before("broadcast.channel:ChannelWire.send"),
    "publisher.after_channel": _after("broadcast.channel:ChannelWire.send"),
    "publisher.after_commit": _after("publisher:Publisher.publish"),
    "feeder.after_hold": _after("store.held:hold"),
    "feeder.before_release": _before("store.held:release"),
    "feeder.after_release": _after("store.held:release"),
    "relay.before_note": _before("store.redelivery:note_sent_again"),
    "relay.after_note": _after("store.redelivery:note_sent_again"),
    "relay.before_send": _before(*_SEND_TO_QUEUE),
    "relay.after_send": _after(*_SEND_TO_QUEUE),
    "consumer.before_task": _before("gathering:Batching.add", "gathering:Lane.add"),
    "subscriber.before_handler": _before("attempt:call"),
    "subscriber.after_handler": _after("attempt:call"),
    "subscriber.after_settle": _after("store.deliveries:settle"),
    "subscriber.after_commit": _after("declaration:deliver"),
    "subscriber.before_failure_note": _before("failure:_note"),
    "subscriber.before_retry_copy": _before("failure:_send_again"),
    "subscriber.after_retry_copy": _after("failure:_send_again"),
    "consumer.before_ack": _before("incoming:TaskMessage.ack"),
    "consumer.after_ack": _after("incoming:TaskMessage.ack"),
}
"""Every step of an event's way, in its order.

`subscriber.after_handler` is before the ledger's row for a handler without the session, and before
the commit for one that takes it, whose row is written first (`subscriber.after_settle`).
"""


@dataclass(frozen=True, slots=True)
class Shot:
    """A kill point that fired, and which process, of which group, it killed."""

    pid: int
    group: int


class Trigger:
    """Arms kill points for the processes that share a folder, and tells which fired."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._armed, self._fired, self._reached = (
            folder / name for name in ("armed", "fired", "reached")
        )

    def make_folders(self) -> None:
        """To be called once, before any other process comes."""
        for each in (self._armed, self._fired, self._reached):
            each.mkdir(parents=True, exist_ok=True)

    def arm(self, name: str, scope: Scope) -> None:
        """The next process that comes to the point dies there."""
        (self._fired / name).unlink(missing_ok=True)
        fresh = self._armed / f".{name}"
        fresh.write_text(scope)
        fresh.rename(self._armed / name)

    def disarm(self, name: str) -> None:
        """Nobody dies there any more."""
        (self._armed / name).unlink(missing_ok=True)

    def fired(self, name: str) -> Shot | None:
        """What happened since the point was armed; None while nobody has come there."""
        try:
            return Shot(**json.loads((self._fired / name).read_text()))
        except FileNotFoundError:
            return None

    def reached(self) -> set[str]:
        """The points that any process has come to, armed or not."""
        return {each.name for each in self._reached.iterdir()}

    def install(self) -> None:
        """Wrap the functions of all kill points, in this process and those it forks."""
        for name, point in KILL_POINTS.items():
            for owner, attribute in point.find():
                wrapped = self._wrap(getattr(owner, attribute), name, after=point.after)
                setattr(owner, attribute, wrapped)

    def _wrap(self, function: Callable[..., Any], name: str, *, after: bool) -> Callable[..., Any]:
        @wraps(function)
        def before_it(*args: Any, **options: Any) -> Any:
            self._come_to(name)
            return function(*args, **options)

        @wraps(function)
        def after_it(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            self._come_to(name)
            return result

        return after_it if after else before_it

    def _come_to(self, name: str) -> None:
        if not (self._reached / name).exists():
            (self._reached / name).touch()
        taken = self._fired / f".{name}.{os.getpid()}"
        try:
            (self._armed / name).rename(taken)
        except FileNotFoundError:
            return
        scope = taken.read_text()
        taken.write_text(json.dumps({"pid": os.getpid(), "group": os.getpgrp()}))
        taken.rename(self._fired / name)
        if scope == "group" or os.getpid() == os.getpgrp():
            note_killed(self._folder, os.getpgrp())
        if scope == "group":
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
