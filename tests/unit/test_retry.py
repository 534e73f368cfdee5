"""What becomes of a delivery that failed."""

import random

import pytest
from celery.exceptions import Reject

from cos_events import Rejected
from cos_events.errors import SubscriptionError
from cos_events.retry import Dead, RetryAfter, RetryPolicy


def test_by_default_every_exception_is_retried_ten_times() -> None:
    policy = RetryPolicy()
    assert isinstance(policy.decide(ZeroDivisionError(), 9), RetryAfter)
    assert policy.decide(ZeroDivisionError(), 10) == Dead("retries exhausted")


def test_without_a_limit_it_is_always_retried() -> None:
    policy = RetryPolicy(max_retries=None, retry_jitter=False)
    assert policy.decide(ValueError(), 5_000) == RetryAfter(600)


def test_no_retries_at_all_means_dead_at_once() -> None:
    assert RetryPolicy(max_retries=0).decide(ValueError(), 0) == Dead("retries exhausted")


@pytest.mark.parametrize("error", [Rejected("never"), Reject("never")])
def test_a_rejection_is_never_retried(error: Exception) -> None:
    policy = RetryPolicy(autoretry_for=(BaseException,), max_retries=None)
    assert policy.decide(error, 0) == Dead("rejected")


def test_only_the_named_errors_are_retried() -> None:
    policy = RetryPolicy(autoretry_for=(OSError,))
    assert isinstance(policy.decide(ConnectionError(), 0), RetryAfter)
    assert policy.decide(ValueError(), 0) == Dead("not an error to retry")


def test_an_exception_to_the_named_errors_is_not_retried() -> None:
    policy = RetryPolicy(autoretry_for=(OSError,), dont_autoretry_for=(FileNotFoundError,))
    assert policy.decide(FileNotFoundError(), 0) == Dead("not an error to retry")
    assert isinstance(policy.decide(PermissionError(), 0), RetryAfter)


def test_what_is_no_exception_of_the_handler_is_not_retried() -> None:
    assert RetryPolicy().decide(KeyboardInterrupt(), 0) == Dead("not an error to retry")


def delays(policy: RetryPolicy, retries: int) -> list[float]:
    outcomes = [policy.decide(ValueError(), each) for each in range(retries)]
    return [outcome.seconds for outcome in outcomes if isinstance(outcome, RetryAfter)]


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [(True, [1, 2, 4, 8, 15, 15]), (3, [3, 6, 12, 15, 15, 15]), (0.5, [1, 2, 4, 8, 15, 15])],
)
def test_the_delay_doubles_up_to_its_maximum(backoff, expected) -> None:
    policy = RetryPolicy(retry_backoff=backoff, retry_backoff_max=15, retry_jitter=False)
    assert delays(policy, 6) == expected


def test_without_backoff_the_delay_is_always_the_same() -> None:
    assert delays(RetryPolicy(retry_backoff=False, default_retry_delay=7.5), 3) == [7.5, 7.5, 7.5]


def test_jitter_draws_the_delay_from_nought_to_its_value(monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(random, "randrange", lambda stop: asked.append(stop) or 0)
    assert delays(RetryPolicy(), 4) == [0, 0, 0, 0]
    assert asked == [2, 3, 5, 9]


def test_the_policys_options_are_taken_out_of_the_tasks() -> None:
    options = {"max_retries": 2, "autoretry_for": [OSError], "rate_limit": "5/m"}
    policy = RetryPolicy.taken_from(options)
    assert (policy.max_retries, policy.autoretry_for) == (2, [OSError])
    assert policy.retry_backoff_max == 600
    assert options == {"rate_limit": "5/m"}
    assert isinstance(policy.decide(TimeoutError(), 0), RetryAfter)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("autoretry_for", ValueError),
        ("autoretry_for", ("ValueError",)),
        ("autoretry_for", (ValueError(),)),
        ("autoretry_for", None),
        ("dont_autoretry_for", (int,)),
        ("max_retries", "3"),
        ("retry_backoff", "fast"),
        ("retry_backoff_max", "600"),
        ("default_retry_delay", None),
    ],
)
def test_an_option_of_a_wrong_type_is_refused_when_it_is_declared(name, value) -> None:
    with pytest.raises(SubscriptionError, match=f"^{name} must be"):
        RetryPolicy.taken_from({name: value})


def test_rejections_cannot_be_reconfigured() -> None:
    options = {"rejections": ()}
    assert RetryPolicy.taken_from(options).decide(Rejected(), 0) == Dead("rejected")
    assert options == {"rejections": ()}
