"""`verify`: the books of every subscription, and an exit code for scripts."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, func, select, text
from sqlalchemy.orm import Session

from cos_events import Envelope, log_l1
from cos_events.l1 import healing
from cos_events.selection import EVERYTHING
from cos_events.store.ledger import COUNTS
from cos_events.store.models import DeliveryRow, OutboxRow, SubscriptionRow

Cli = Callable[..., Result]
Verify = Callable[..., tuple[int, dict[str, dict[str, int]]]]


@pytest.fixture
def verify(cli: Cli) -> Verify:
    """The exit code of `verify --json`, and its counts by subscription."""

    def run(*options: str) -> tuple[int, dict[str, dict[str, int]]]:
        result = cli("verify", "--json", *options)
        assert result.exit_code in (0, 1), result.output
        accounts = json.loads(result.stdout)["subscriptions"]
        return result.exit_code, {
            each["subscription"]: {name: each[name] for name in COUNTS if each[name]}
            for each in accounts
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
    st.sampled_from([None, "delivered", "held", "retrying", "dead", "discarded"]),
    st.sampled_from([None, "delivered", "held", "retrying", "dead", "discarded"]),
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=st.lists(EVENTS, max_size=8))
def test_committed_is_always_the_sum_of_the_other_counts(
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


@pytest.mark.parametrize("state", ["held", "retrying", "dead", "delivered", "discarded", None])
def test_with_all_delivered_what_is_yet_to_come_and_dead_letters_count(
    state: str | None,
    subscribe: Callable[..., None],
    add_event: Callable[..., object],
    verify: Verify,
) -> None:
    subscribe("mailer")
    add_event(published=state and 1, mailer=state)
    assert verify()[0] == 0
    assert verify("--all-delivered")[0] == int(state not in ("delivered", "discarded"))


@pytest.mark.parametrize(("published", "counted_as"), [(1, "in_flight"), (3600, "missing")])
def test_waiting_ends_as_soon_as_nothing_is_owed(
    published: int,
    counted_as: str,
    subscribe: Callable[..., None],
    add_event: Callable[..., object],
    verify: Verify,
    database: Engine,
) -> None:
    subscribe("mailer")
    event = add_event(published=published)
    assert verify("--wait", "0.3")[1]["mailer"][counted_as] == 1

    def deliver() -> None:
        with Session(database) as session, session.begin():
            row = {"subscription": "mailer", "event_id": event, "state": "delivered"}
            outbox_id = session.scalars(select(OutboxRow.id)).one()
            session.add(DeliveryRow(attempts=1, outbox_id=outbox_id, **row))

    timer = threading.Timer(0.5, deliver)
    timer.start()
    assert verify("--wait", "60") == (0, {"mailer": {"committed": 1, "delivered": 1}})
    timer.join()


def test_held_and_discarded_are_counted_as_what_they_are(
    subscribe: Callable[..., None], add_event: Callable[..., object], verify: Verify
) -> None:
    subscribe("mailer")
    add_event(published=3600, mailer="held")
    add_event(published=3600, mailer="discarded")
    assert verify() == (0, {"mailer": {"committed": 2, "held": 1, "discarded": 1}})


def test_a_long_outbox_is_walked_in_ranges_with_the_same_result(
    subscribe: Callable[..., None],
    add_event: Callable[..., object],
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subscribe("mailer")
    for number in range(7):
        add_event(("cc", "pem")[number % 2], published=3600, mailer="delivered")
    whole = json.loads(cli("verify", "--json").output)
    monkeypatch.setattr("cos_events.store.ledger.CHUNK", 2)
    assert json.loads(cli("verify", "--json").output) == whole
    (account,) = whole["subscriptions"]
    assert {name: each["delivered"] for name, each in account["modules"].items()} == {
        "cc": 4,
        "pem": 3,
    }


def test_the_digest_is_over_the_delivered_ids_in_their_order(
    subscribe: Callable[..., None], add_event: Callable[..., object], cli: Cli
) -> None:
    subscribe("mailer")
    had = [add_event(published=3600, mailer="delivered") for _ in range(3)]
    add_event(published=3600, mailer="dead")
    (account,) = json.loads(cli("verify", "--json").output)["subscriptions"]
    lines = "".join(f"{event}\n" for event in had)
    assert account["modules"]["cc"]["digest"] == hashlib.sha256(lines.encode()).hexdigest()


def test_it_is_narrowed_by_subscription_module_type_and_time(
    subscribe: Callable[..., None],
    add_event: Callable[..., object],
    verify: Verify,
    cli: Cli,
    sentence: Callable[[Result], str],
) -> None:
    subscribe("mailer")
    subscribe("archive")
    add_event("pem", published=3600, mailer="delivered")
    add_event("cc", published=3600, mailer="delivered", archive="delivered")
    assert verify("--subscription", "mailer") == (0, {"mailer": {"committed": 2, "delivered": 2}})
    assert verify("--module", "cc")[0] == 0
    assert verify("--module", "pem")[0] == 1
    assert verify("--event-type", "other") == (0, {"mailer": {}, "archive": {}})
    assert verify("--event-type", "event_log") == verify()
    assert verify("--until", "1h") == (0, {"mailer": {}, "archive": {}})
    assert verify("--since", "1h")[0] == 1
    expected = "there is no subscription 'gossip'; there are: archive, mailer"
    assert sentence(cli("verify", "--subscription", "gossip")) == expected


@pytest.fixture
def raw_rows(database: Engine) -> list[str]:
    """L1 rows written past `log_l1`: one of each kind, and one without content."""
    rows = [str(uuid4()) for _ in range(3)]
    with database.begin() as connection:
        for row, kind in zip(rows, ("event_log", "prompt_trace", "event_log"), strict=True):
            connection.execute(
                text(
                    "INSERT INTO mem0_cc.base_log (id, source_module, event_type, occurred_at, "
                    "trace_id, request_id) VALUES (:id, 'cc', :kind, now(), 't', 'r')"
                ),
                {"id": row, "kind": kind},
            )
        connection.execute(
            text(
                "INSERT INTO mem0_cc.event_log VALUES (:id, 'INFO', 'raw', 'hello', '{\"a\": 1}')"
            ),
            {"id": rows[0]},
        )
        connection.execute(
            text("INSERT INTO mem0_cc.prompt_trace VALUES (:id, 'p', 'r', 'm', 1, 2, 0.5, '{}')"),
            {"id": rows[1]},
        )
    return rows


def test_l1_rows_written_past_the_bus_are_found_and_healed(
    raw_rows: list[str], subscribe: Callable[..., None], cli: Cli, database: Engine
) -> None:
    subscribe("activity")
    with Session(database) as session, session.begin():
        log_l1(session, "event_log", {"level": "INFO", "component": "c", "message": "m"})
    assert "3 L1 rows have no event: run `verify --heal` to record them\n" in cli("verify").output
    found = cli("verify", "--json")
    assert found.exit_code == 1
    assert json.loads(found.output)["unrecorded"] == {"found": 3, "healed": 0, "refused": {}}
    healed = cli("verify", "--heal", "--json")
    assert healed.exit_code == 1, "one cannot be healed"
    report = json.loads(healed.output)["unrecorded"]
    assert (report["found"], report["healed"]) == (3, 2)
    assert report["refused"] == {
        raw_rows[2]: "its content is missing: there is no row of 'event_log' for it"
    }
    with Session(database) as session:
        raws = session.scalars(
            select(OutboxRow.envelope)
            .where(OutboxRow.published_at.is_(None))
            .order_by(OutboxRow.id)
        )
        envelopes = {str(each.base_log_id): each for each in map(Envelope.decode, raws)}
    event, prompt = (envelopes[row] for row in raw_rows[:2])
    assert event.data == {
        "attributes": {"a": 1},
        "level": "INFO",
        "component": "raw",
        "message": "hello",
    }
    assert (event.trace_id, event.request_id, prompt.data["tokens_out"]) == ("t", "r", 2)
    again = json.loads(cli("verify", "--heal", "--json").output)["unrecorded"]
    assert (again["found"], again["healed"]) == (1, 0)


def test_two_that_heal_at_once_give_each_row_one_event(
    raw_rows: list[str], database: Engine
) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = [
            each.result()
            for each in [
                pool.submit(healing.find, database, EVERYTHING, heal=True) for _ in range(2)
            ]
        ]
    assert sum(each.healed for each in results) == 2
    with database.connect() as connection:
        assert connection.scalar(select(func.count(OutboxRow.id))) == 2


def test_many_l1_rows_are_looked_at_page_by_page(
    raw_rows: list[str], database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healing, "PAGE", 1)
    pages: list[int] = []
    assert healing.find(database, EVERYTHING, heal=False, on_done=pages.append).found == 3
    assert pages == [1, 1, 1]
