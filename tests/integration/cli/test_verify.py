"""`verify`: the books of every subscription, and an exit code for scripts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from cos_events.store.models import DeliveryRow, OutboxRow, SubscriptionRow

Cli = Callable[..., Result]
Verify = Callable[..., tuple[int, dict[str, dict[str, int]]]]


@pytest.fixture
def verify(cli: Cli) -> Verify:
    """The exit code of `verify --json`, and its counts by subscription."""

    def run(*options: str) -> tuple[int, dict[str, dict[str, int]]]:
        result = cli("verify", "--json", *options)
        assert result.exit_code in (0, 1), result.output
        accounts = json.loads(result.output)["subscriptions"]
        return result.exit_code, {
            each.pop("subscription"): {k: v for k, v in each.items() if v} for each in accounts
        }

    return run


def test_verify_without_subscriptions_says_so(database: Engine, cli: Cli) -> None:
    result = cli("verify")
    assert (result.exit_code, result.output) == (0, "no subscriptions yet: start a worker\n")


def test_verify_tells_waiting_in_flight_dead_and_missing_apart(
    subscribe: Callable[..., None],
    add_event: Callable[..., object],
    verify: Verify,
    cli: Cli,
) -> None:
    subscribe("mailer")
    add_event(published=3600, mailer="delivered")
    add_event()
    add_event(published=1)
    add_event(published=3600, mailer="retrying")
    add_event(published=3600, mailer="dead")
    known = {"delivered": 1, "waiting": 1, "in_flight": 2, "dead": 1}
    assert verify() == (0, {"mailer": {"committed": 5, **known}})
    assert cli("verify").output.endswith("\nmissing 0\n")
    add_event(published=3600)
    assert verify() == (1, {"mailer": {"committed": 6, **known, "missing": 1}})
    assert verify("--grace", "7200")[0] == 0
    table = cli("verify")
    assert table.exit_code == 1
    assert "in flight" in table.output
    assert table.output.endswith("\nmissing 1\n")


def test_a_subscription_is_owed_only_what_it_asked_for_since_it_was_made(
    subscribe: Callable[..., None],
    add_event: Callable[..., object],
    verify: Verify,
    database: Engine,
) -> None:
    add_event("cc")
    with Session(database) as session:
        first = session.query(OutboxRow.id).scalar()
    subscribe("everything")
    subscribe("late", starts_after=first)
    subscribe("of_cc", modules=["cc", "ops"])
    subscribe("prompts", event_types=["prompt_trace"])
    subscribe("nothing", modules=[])
    add_event("hr", "prompt_trace")
    add_event("ops")
    owed = {name: counts.get("committed", 0) for name, counts in verify()[1].items()}
    assert owed == {"everything": 3, "late": 2, "of_cc": 2, "prompts": 1, "nothing": 0}


EVENTS = st.tuples(
    st.sampled_from(["cc", "ops"]),
    st.sampled_from([None, 1.0, 3600.0]),
    st.sampled_from([None, "delivered", "retrying", "dead"]),
    st.sampled_from([None, "delivered", "retrying", "dead"]),
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=st.lists(EVENTS, max_size=8))
def test_committed_is_always_the_sum_of_the_other_five(
    events: list[tuple[str, float | None, str | None, str | None]],
    database: Engine,
    add_event: Callable[..., object],
    verify: Verify,
) -> None:
    with Session(database) as session, session.begin():
        for table in (DeliveryRow, OutboxRow, SubscriptionRow):
            session.execute(delete(table))
        session.add_all([SubscriptionRow(name="a"), SubscriptionRow(name="b", modules=["ops"])])
    for module, published, a, b in events:
        add_event(module, published=published, a=a, b=b if module == "ops" else None)
    code, accounts = verify()
    for name, counts in accounts.items():
        assert counts.pop("committed", 0) == sum(counts.values()), name
    expected = [
        (published or 0) > 60 and (a is None or (module == "ops" and b is None))
        for module, published, a, b in events
    ]
    assert code == int(any(expected))


def test_waiting_ends_as_soon_as_nothing_moves(
    subscribe: Callable[..., None],
    add_event: Callable[..., object],
    verify: Verify,
    database: Engine,
) -> None:
    subscribe("mailer")
    event = add_event(published=1)
    assert verify("--wait", "0.3")[1]["mailer"]["in_flight"] == 1

    def deliver() -> None:
        with Session(database) as session, session.begin():
            row = {"subscription": "mailer", "event_id": event, "state": "delivered"}
            outbox_id = session.scalars(select(OutboxRow.id)).one()
            session.add(DeliveryRow(attempts=1, outbox_id=outbox_id, **row))

    timer = threading.Timer(0.5, deliver)
    timer.start()
    assert verify("--wait", "60") == (0, {"mailer": {"committed": 1, "delivered": 1}})
    timer.join()
