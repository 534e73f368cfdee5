"""The seed alone decides what happens when."""

from __future__ import annotations

from collections import Counter

from cos_events.faults.kinds import kinds_on
from cos_events.faults.schedule import faults_for, plan, rate_for

KINDS = {f"kind.{number}": (1.0, 3.0) for number in range(10)}


def test_the_same_seed_plans_the_same_faults_and_another_others() -> None:
    assert plan(1, 5_000, KINDS, 25) == plan(1, 5_000, KINDS, 25)
    assert plan(1, 5_000, KINDS, 25) != plan(2, 5_000, KINDS, 25)


def test_each_kind_comes_as_often_as_any_other_give_or_take_one() -> None:
    times = Counter(each.kind for each in plan(1, 5_000, KINDS, 25))
    assert times.keys() == KINDS.keys()
    assert set(times.values()) == {2, 3}


def test_faults_come_in_order_while_events_are_committed_and_last_as_long_as_their_kind() -> None:
    planned = plan(7, 5_000, KINDS, 40)
    assert [each.at for each in planned] == sorted(each.at for each in planned)
    assert all(100 <= each.at <= 4_600 for each in planned)
    assert all(1.0 <= each.seconds <= 3.0 and 0.0 <= each.pick < 1.0 for each in planned)


def test_no_faults_are_planned_where_none_are_wanted() -> None:
    assert plan(1, 100, KINDS, 0) == []
    assert rate_for(100, 0) == 28.6


def test_a_run_has_each_kind_once_or_a_fault_in_500_events_some_seconds_apart() -> None:
    kinds = len(kinds_on("redis"))
    assert faults_for(5_000, kinds) == kinds
    assert faults_for(100_000, kinds) == 200
    assert rate_for(100_000, 200) == 142.9
    assert rate_for(10_000_000, 200) == 400


def test_both_brokers_have_kinds_of_their_own() -> None:
    assert kinds_on("rabbitmq").keys() - kinds_on("redis").keys() == {
        "broker.delete_exchange",
        "broker.purge_queue",
    }
