"""What becomes of a failed delivery: decides by Celery's task options, and does nothing itself."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from celery.exceptions import Reject, WorkerLostError
from celery.utils.time import get_exponential_backoff_interval

from cos_events.errors import Rejected, SubscriptionError

_NUMBERS: dict[str, Any] = {
    "max_retries": int | None,
    "retry_backoff": bool | int | float,
    "retry_backoff_max": int,
    "retry_jitter": bool,
    "default_retry_delay": int | float,
    "max_deaths": int,
}

Errors = tuple[type[BaseException], ...]


def check_errors(option: str, errors: object) -> None:
    """Refuse what is not a tuple, or list, of exception classes.

    Raises:
        SubscriptionError: names the option.
    """
    if not isinstance(errors, (tuple, list)) or not all(
        isinstance(error, type) and issubclass(error, BaseException) for error in errors
    ):
        raise SubscriptionError(f"{option} must be a tuple of exception classes")


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """It runs again after this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Dead:
    """It waits for a person, because of `reason`."""

    reason: str


FEWEST_DEATHS = 2
"""If the broker loses a message, nobody knows whether a worker had it: that counts as one death,
and must not end it."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """A subscription's retry options: Celery's names and meaning, with defaults for a durable bus.

    Attributes:
        autoretry_for: the errors that are tried again; every exception.
        dont_autoretry_for: the errors that are not, even if `autoretry_for` covers them.
        max_retries: how often after the first attempt; None for no limit.
        retry_backoff: True, or the first delay in seconds, which doubles each time; False for
            always `default_retry_delay`.
        retry_backoff_max: the longest delay, in seconds.
        retry_jitter: draw the delay between zero and its value, so that retries spread.
        default_retry_delay: seconds, without backoff.
        max_deaths: how many processes in a row may die from one message before it is a dead letter;
            at least `FEWEST_DEATHS`.
    """

    autoretry_for: Errors = (Exception,)
    dont_autoretry_for: Errors = ()
    max_retries: int | None = 10
    retry_backoff: bool | float = True
    retry_backoff_max: int = 600
    retry_jitter: bool = True
    default_retry_delay: float = 180.0
    max_deaths: int = 5

    @classmethod
    def options(cls) -> list[str]:
        """Their names."""
        return [each.name for each in fields(cls)]

    @classmethod
    def taken_from(cls, task_options: dict[str, Any]) -> Self:
        """The policy in these task options, which are taken out of the dictionary.

        Raises:
            SubscriptionError: an option has the wrong type; without the subscription's name.
        """
        given = {name: task_options.pop(name) for name in cls.options() if name in task_options}
        policy = cls(**given)
        for name in ("autoretry_for", "dont_autoretry_for"):
            check_errors(name, getattr(policy, name))
        for name, kinds in _NUMBERS.items():
            value, least = getattr(policy, name), FEWEST_DEATHS if name == "max_deaths" else 0
            if not isinstance(value, kinds) or (isinstance(value, int | float) and value < least):
                raise SubscriptionError(f"{name} must be a number, {least} or more, not {value!r}")
        return policy

    def decide(self, error: BaseException, retries: int, deaths: int = 0) -> RetryAfter | Dead:
        """What follows `error` after `retries` earlier retries and `deaths` deaths in a row."""
        if deaths >= self.max_deaths:
            return Dead(f"killed its worker {deaths} times")
        if isinstance(error, Rejected | Reject):
            return Dead("rejected")
        listed = isinstance(error, tuple(self.autoretry_for)) and not isinstance(
            error, tuple(self.dont_autoretry_for)
        )
        # What kills a process is not an exception that anybody could list.
        if not listed and not isinstance(error, WorkerLostError):
            return Dead("not an error to retry")
        if self.max_retries is not None and retries >= self.max_retries:
            return Dead("retries exhausted")
        if not self.retry_backoff:
            return RetryAfter(self.default_retry_delay)
        return RetryAfter(
            get_exponential_backoff_interval(
                factor=int(max(1.0, self.retry_backoff)),
                retries=retries,
                maximum=self.retry_backoff_max,
                full_jitter=self.retry_jitter,
            )
        )
