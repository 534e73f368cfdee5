"""Every kind of fault: what it does, for how long, and when it is over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import OperationalError

from cos_events.embedded import BrokerName
from cos_events.embedded.process import frozen
from cos_events.faults.bench import Bench
from cos_events.faults.kill_points import KILL_POINTS
from cos_events.faults.processes import Process
from cos_events.faults.proxy import Lost
from cos_events.faults.schedule import Planned
from cos_events.faults.truth import MODULE, SUBSCRIPTIONS
from cos_events.faults.wire import Wire
from cos_events.store import held
from cos_events.store.engine import wait_at_most
from cos_events.topology import channel_name

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wait:
    """What a fault waits for.

    Attributes:
        seconds: that it has lasted so long.
        until: that this holds, if that is earlier.
    """

    seconds: float
    until: Callable[[], bool] = lambda: False


Fault = Generator[Wait, None, str | None]
"""A fault under way: yields what it waits for, and returns whom it hit; None if it hit nobody.

Closed early, it mends what it has broken.
"""

PATIENCE = 60.0
"""Seconds that a fault waits for what it needs: a process to be there, an event to come by."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault.

    Attributes:
        target: what only one fault at a time can have.
        seconds: its shortest and longest time.
        begin: starts one.
    """

    target: str
    seconds: tuple[float, float]
    begin: Callable[[Bench, Planned], Fault]


def kinds_on(broker: BrokerName) -> dict[str, Kind]:
    """All kinds that there are with this broker, by name."""
    return {
        "application.kill": Kind("application", (0, 0), _kill("application")),
        "publisher.kill": Kind("publisher", (0, 0), _kill("publisher")),
        "publisher.freeze": Kind("publisher", (1, 5), _freeze_process("publisher")),
        "subscriber.kill": Kind("subscriber", (0, 0), _kill("subscriber")),
        "subscriber.freeze": Kind("subscriber", (1, 8), _freeze_process("subscriber")),
        "child.kill": Kind("child", (0, 0), _kill_child),
        **_on_wire("redis"),
        **_on_wire("broker"),
        **(_ON_RABBITMQ if broker == "rabbitmq" else _ON_REDIS),
        "postgres.restart": Kind("postgres", (0.5, 2), _postgres_down(crash=False)),
        "postgres.crash": Kind("postgres", (0.5, 2), _postgres_down(crash=True)),
        **{name: Kind(_target_of(name), (0, 0), _kill_at) for name in KILL_POINTS},
    }


def _kill(whose: str) -> Callable[[Bench, Planned], Fault]:
    def begin(bench: Bench, planned: Planned) -> Fault:
        process = yield from _one_of(bench.named(whose), planned)
        if process is None:
            return None
        process.kill()
        yield Wait(PATIENCE, lambda: process.is_ready)
        return process.name

    return begin


def _freeze_process(whose: str) -> Callable[[Bench, Planned], Fault]:
    def begin(bench: Bench, planned: Planned) -> Fault:
        process = yield from _one_of(bench.named(whose), planned)
        if process is None:
            return None
        with _frozen([process]):
            yield Wait(planned.seconds)
        return process.name

    return begin


def _frozen(processes: Sequence[Process]) -> AbstractContextManager[None]:
    """With their pools."""
    return frozen(*(-pid for each in processes if (pid := each.pid)))


def _kill_child(bench: Bench, planned: Planned) -> Fault:
    workers = bench.named("subscriber")
    yield Wait(PATIENCE, lambda: any(each.children() for each in workers))
    children = [(each, pid) for each in workers for pid in each.children()]
    if not children:
        return None
    worker, pid = _pick(children, planned)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return f"a child of {worker.name}"


def _kill_at(bench: Bench, planned: Planned) -> Fault:
    name = planned.kind
    bring_about, again_after = _NEEDS.get(name.partition(".")[0], (None, PATIENCE))
    bench.trigger.arm(name, "group" if planned.pick < 0.5 else "process")
    deadline = time.monotonic() + PATIENCE
    try:
        while bench.trigger.fired(name) is None and time.monotonic() < deadline:
            if bring_about:
                yield from bring_about(bench)
            yield Wait(again_after, lambda: bench.trigger.fired(name) is not None)
    finally:
        bench.trigger.disarm(name)
    shot = bench.trigger.fired(name)
    if shot is None:
        return None
    victim = next(each for each in bench.processes.values() if shot.group in each.groups)
    yield Wait(PATIENCE, lambda: victim.is_ready)
    return victim.name if shot.pid == shot.group else f"a child of {victim.name}"


def _target_of(kill_point: str) -> str:
    needed = {"relay": "broker", "feeder": "postgres"}
    return needed.get(kill_point.partition(".")[0], kill_point)


def _lose_events(bench: Bench) -> Generator[Wait, None, None]:
    """Let queues fill, and lose what is in them: the relay has nothing to do otherwise."""
    with _frozen(bench.named("subscriber")):
        yield Wait(2.5)
        for name in SUBSCRIPTIONS:
            bench.broker.purge_queue(name)


def _hold(bench: Bench) -> Generator[Wait, None, None]:
    """Have copies wait in PostgreSQL, as those of full queues do; the feeder then has work."""
    for name in SUBSCRIPTIONS:
        while True:
            # Who publishes, and stands still just now, keeps everybody from beginning to hold.
            with suppress(OperationalError), bench.engine.begin() as connection:
                wait_at_most(connection, 200)
                held.start_holding(connection, name)
                break
            yield Wait(0.5)


_NEEDS: dict[str, tuple[Callable[[Bench], Generator[Wait, None, None]], float]] = {
    "relay": (_lose_events, 10.0),
    "feeder": (_hold, 0.25),
}
"""What brings a process to a kill point of these, and after how many seconds again: what waits for
the feeder may have gone before a publisher comes by."""


_OnWire = Callable[[Wire, Planned], Fault]


def _on_wire(name: str) -> dict[str, Kind]:
    def kind(seconds: tuple[float, float], begin: _OnWire) -> Kind:
        return Kind(name, seconds, lambda bench, planned: begin(getattr(bench, name), planned))

    return {
        f"{name}.freeze": kind((1.5, 4), _lasting(Wire.frozen)),
        f"{name}.restart": kind((0.2, 2), _lasting(Wire.down)),
        f"{name}.crash": kind((0.2, 2), _lasting(partial(Wire.down, crash=True))),
        f"{name}.empty": kind((0, 0.5), _empty),
        f"{name}.delay": kind((2, 4), _delay),
        f"{name}.drop": kind((1.5, 4), _drop),
        f"{name}.reset": kind((0, 0.5), _reset),
        f"{name}.cut": kind((1.5, 4), _lasting(Wire.cut)),
    }


def _lasting(fault: Callable[[Wire], AbstractContextManager[None]]) -> _OnWire:
    def begin(wire: Wire, planned: Planned) -> Fault:
        with fault(wire):
            yield Wait(planned.seconds)
        return wire.server.name

    return begin


def _empty(wire: Wire, planned: Planned) -> Fault:
    yield Wait(planned.seconds)
    wire.empty()
    return wire.server.name


def _delay(wire: Wire, planned: Planned) -> Fault:
    seconds = 0.01 + 0.4 * planned.pick
    with wire.delayed(seconds):
        yield Wait(planned.seconds)
    return f"{1000 * seconds:.0f} ms each way"


def _drop(wire: Wire, planned: Planned) -> Fault:
    lost: Lost = "answers" if planned.pick < 0.5 else "everything"
    with wire.dropping(lost):
        yield Wait(planned.seconds)
    return lost


def _reset(wire: Wire, planned: Planned) -> Fault:
    yield Wait(planned.seconds)
    wire.reset()
    return "its connections"


def _on_queue(act: Callable[[Wire, str], None]) -> Kind:
    def begin(bench: Bench, planned: Planned) -> Fault:
        name = _pick(SUBSCRIPTIONS, planned)
        yield Wait(planned.seconds)
        act(bench.broker, name)
        return name

    return Kind("broker", (0, 0.5), begin)


def _delete_exchange(bench: Bench, planned: Planned) -> Fault:
    name = channel_name(MODULE)
    yield Wait(planned.seconds)
    bench.broker.delete_exchange(name)
    return name


_ON_REDIS = {"broker.delete_queue": _on_queue(Wire.delete_queue)}

_ON_RABBITMQ = {
    "broker.delete_queue": _on_queue(Wire.delete_queue),
    "broker.purge_queue": _on_queue(Wire.purge_queue),
    "broker.delete_exchange": Kind("broker", (0, 0.5), _delete_exchange),
}


def _postgres_down(*, crash: bool) -> Callable[[Bench, Planned], Fault]:
    def begin(bench: Bench, planned: Planned) -> Fault:
        with bench.postgres_down(crash=crash):
            yield Wait(planned.seconds)
        return bench.postgres.name

    return begin


def _one_of(
    processes: Sequence[Process], planned: Planned
) -> Generator[Wait, None, Process | None]:
    """One of these processes that works, once there is one."""
    yield Wait(PATIENCE, lambda: any(each.is_ready for each in processes))
    return _pick([each for each in processes if each.is_ready] or [None], planned)


def _pick(choices: Sequence[T], planned: Planned) -> T:
    return choices[int(planned.pick * len(choices))]
