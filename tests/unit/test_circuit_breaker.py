"""Closed, open, half-open."""

import asyncio
import logging
import threading

import pytest

from cos_events.circuit_breaker import CircuitBreaker, CircuitOpen


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail(breaker: CircuitBreaker) -> None:
    with pytest.raises(OSError, match="refused"), breaker:
        raise OSError("refused")


def test_it_is_closed_as_long_as_calls_succeed(clock) -> None:
    breaker = CircuitBreaker("redis", clock=clock)
    for _ in range(3):
        with breaker:
            pass
    assert (breaker.state, breaker.opened) == ("closed", 0)


def test_a_failure_opens_it_and_then_no_call_is_made(clock) -> None:
    breaker = CircuitBreaker("redis", clock=clock)
    fail(breaker)
    assert (breaker.state, breaker.opened) == ("open", 1)
    with pytest.raises(CircuitOpen, match="redis is left alone after a failure"), breaker:
        pytest.fail("the call was made")


def test_after_a_while_one_call_may_probe_and_its_success_closes_it(clock) -> None:
    breaker = CircuitBreaker("redis", reset_after=5, clock=clock)
    fail(breaker)
    clock.now += 4.9
    assert breaker.state == "open"
    clock.now += 0.1
    assert breaker.state == "half_open"
    with breaker:
        assert breaker.state == "open"
        with pytest.raises(CircuitOpen), breaker:
            pytest.fail("a second probe was let through")
    assert breaker.state == "closed"


def test_a_failed_probe_opens_it_for_another_while_without_counting_again(clock) -> None:
    breaker = CircuitBreaker("redis", reset_after=5, clock=clock)
    fail(breaker)
    clock.now += 5
    fail(breaker)
    assert (breaker.state, breaker.opened) == ("open", 1)
    clock.now += 4.9
    assert breaker.state == "open"
    clock.now += 0.1
    with breaker:
        pass
    fail(breaker)
    assert breaker.opened == 2


def test_an_interrupted_probe_leaves_room_for_the_next(clock) -> None:
    breaker = CircuitBreaker("redis", reset_after=5, clock=clock)
    fail(breaker)
    clock.now += 5
    with pytest.raises(KeyboardInterrupt), breaker:
        raise KeyboardInterrupt
    clock.now += 5
    assert breaker.state == "half_open"


def test_of_many_threads_one_probes(clock) -> None:
    breaker = CircuitBreaker("redis", reset_after=5, clock=clock)
    fail(breaker)
    clock.now += 5
    inside, leave, refused = threading.Event(), threading.Event(), []

    def probe() -> None:
        with breaker:
            inside.set()
            leave.wait(10)

    def be_refused() -> None:
        try:
            with breaker:
                pass
        except CircuitOpen:
            refused.append(True)

    prober = threading.Thread(target=probe)
    prober.start()
    assert inside.wait(10)
    others = [threading.Thread(target=be_refused) for _ in range(5)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join(10)
    leave.set()
    prober.join(10)
    assert len(refused) == 5
    assert breaker.state == "closed"


def test_each_change_is_logged_once_with_its_reason(clock, caplog) -> None:
    breaker = CircuitBreaker("redis", reset_after=5, clock=clock)
    with caplog.at_level(logging.WARNING, "cos_events.circuit_breaker"):
        fail(breaker)
        clock.now += 5
        fail(breaker)
        clock.now += 5
        for _ in range(2):
            with breaker:
                pass
    assert caplog.messages == ["redis is down: refused", "redis is back"]


def test_a_reason_without_words_is_logged_by_its_class(clock, caplog) -> None:
    with pytest.raises(TimeoutError), CircuitBreaker("redis", clock=clock):
        raise TimeoutError
    assert caplog.messages == ["redis is down: TimeoutError"]


def test_calls_that_began_before_it_opened_neither_close_it_nor_make_room_for_a_second_probe(
    clock,
) -> None:
    breaker = CircuitBreaker("redis", reset_after=5, clock=clock)
    states = []

    async def call(ends: asyncio.Event, error: Exception | None = None) -> None:
        with breaker:
            await ends.wait()
            if error:
                raise error

    async def overlap() -> None:
        ends = [asyncio.Event() for _ in range(4)]
        errors = [OSError("refused"), None, OSError("reset")]
        calls = [
            asyncio.create_task(call(end, error)) for end, error in zip(ends, errors, strict=False)
        ]
        await asyncio.sleep(0)

        async def end(index: int) -> None:
            ends[index].set()
            await asyncio.wait([calls[index]])
            states.append(breaker.state)

        await end(0)
        await end(1)
        clock.now += 5
        calls.append(asyncio.create_task(call(ends[3])))
        await asyncio.sleep(0)
        await end(2)
        await end(3)

    asyncio.run(overlap())
    assert states == ["open", "open", "open", "closed"]
