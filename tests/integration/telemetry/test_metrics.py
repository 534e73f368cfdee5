"""What `/metrics` says: of PostgreSQL and the broker, and of what processes counted."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, func, update
from sqlalchemy.orm import Session

from cos_events import Envelope, metrics
from cos_events.errors import BrokerAway, ConfigurationError
from cos_events.store.models import DeliveryRow, OutboxRow, SubscriptionRow

if TYPE_CHECKING:
    from conftest import Bus

ROOT = Path(__file__).parents[3]
MINUTE_AGO = func.now() - func.make_interval(0, 0, 0, 0, 0, 1)


def read(text: str) -> dict[tuple[str, ...], float]:
    """Name and label values → value; the labels in alphabetical order, as they are written."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape() -> dict[tuple[str, ...], float]:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return read(body.decode())


@pytest.fixture
def change(database: Engine) -> Callable[..., None]:
    """Change every row of a table."""

    def rows(table: type, *conditions: object, **columns: object) -> None:
        with database.begin() as connection:
            connection.execute(update(table).where(*conditions).values(columns))

    return rows


@pytest.fixture
def had(database: Engine) -> Callable[[str, str, str], None]:
    """Write into the ledger what became of an event."""

    def write(name: str, raw: str, state: str) -> None:
        event_id = Envelope.decode(raw).base_log_id
        with Session(database) as session, session.begin():
            row = session.query(OutboxRow).filter_by(event_id=event_id).one()
            session.add(
                DeliveryRow(
                    subscription=name,
                    event_id=event_id,
                    outbox_id=row.id,
                    state=state,
                    attempts=1,
                )
            )

    return write


def test_the_outbox_is_shown_with_the_age_of_its_oldest_row(bus: Bus, change) -> None:
    empty = scrape()
    assert (empty["cos_events_outbox_rows",], empty["cos_events_outbox_oldest_seconds",]) == (0, 0)
    bus.record()
    bus.record()
    change(OutboxRow, recorded_at=MINUTE_AGO)
    waiting = scrape()
    assert waiting["cos_events_outbox_rows",] == 2
    assert 60 <= waiting["cos_events_outbox_oldest_seconds",] < 120


def test_a_subscription_lags_by_what_it_has_not_had_and_dead_letters_do_not_count(
    bus: Bus, change, had
) -> None:
    name = bus.declare(lambda message: None, modules=[bus.module], event_types=["event_log"])
    bus.record("other")
    for state in ("held", "retrying", "retrying", "dead", "delivered"):
        had(name, bus.record(), state)
    bus.record()
    change(OutboxRow, recorded_at=MINUTE_AGO)
    shown = scrape()
    assert {
        state: shown["cos_events_deliveries", state, name] for state in ("held", "retrying", "dead")
    } == {"held": 1, "retrying": 2, "dead": 1}
    assert shown["cos_events_lag_events", name] == 4
    assert 60 <= shown["cos_events_lag_seconds", name] < 120


def test_one_that_has_had_or_will_never_have_everything_does_not_lag(bus: Bus, had) -> None:
    name = bus.declare(lambda message: None)
    for state in ("delivered", "dead", "discarded"):
        had(name, bus.record(), state)
    shown = scrape()
    assert (shown["cos_events_lag_events", name], shown["cos_events_lag_seconds", name]) == (0, 0)


def test_a_pause_and_a_full_queue_are_shown(bus: Bus, change) -> None:
    name, other = bus.declare(lambda message: None), bus.declare(lambda message: None)
    this_one = SubscriptionRow.name == name
    change(SubscriptionRow, this_one, paused_until=func.now(), holding=True)
    shown = scrape()
    assert (shown["cos_events_paused", name], shown["cos_events_holding", name]) == (1, 1)
    assert (shown["cos_events_paused", other], shown["cos_events_holding", other]) == (0, 0)


def test_a_queue_shows_what_waits_in_it(bus: Bus) -> None:
    name, empty = bus.declare(lambda message: None), bus.declare(lambda message: None)
    for _ in range(3):
        bus.app.tasks[name].apply_async(args=([bus.record()],), queue=name)
    shown = scrape()
    assert shown["cos_events_queue_depth", name] == 3
    assert shown["cos_events_queue_depth", empty] == 0
    assert ("cos_events_queue_depth", "cos_events.publish") in shown


def away(_names: object) -> dict[str, int]:
    raise BrokerAway("redis://127.0.0.1", "gone")


def test_a_server_that_is_away_is_told_and_the_rest_is_shown(
    bus: Bus, environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (scrape()["cos_events_up", "postgresql"], scrape()["cos_events_up", "broker"]) == (1, 1)
    with monkeypatch.context() as patched:
        patched.setattr("cos_events.broker.queue_depths", away)
        shown = scrape()
    assert (shown["cos_events_up", "postgresql"], shown["cos_events_up", "broker"]) == (1, 0)
    assert not [key for key in shown if key[0] == "cos_events_queue_depth"]
    environment(DATABASE_URL="postgresql://nobody@127.0.0.1:1/nowhere")
    shown = scrape()
    assert (shown["cos_events_up", "postgresql"], shown["cos_events_up", "broker"]) == (0, 1)
    assert ("cos_events_queue_depth", "cos_events.publish") in shown
    assert not [key for key in shown if key[0].startswith(("cos_events_outbox", "cos_events_lag"))]


def test_processes_that_share_their_counts_are_shown_as_one(tmp_path: Path) -> None:
    script = """
import os, sys
from cos_events import telemetry
from cos_events.telemetry import names
telemetry.share_counts(sys.argv[1])
telemetry.count(names.PUBLISHED, "cc", by=1)
for by in (10, 100):
    if os.fork() == 0:
        telemetry.count(names.PUBLISHED, "cc", by=by)
        telemetry.observe(names.PUBLISH_LATENCY, "cc", seconds=[0.02])
        telemetry.show(names.BREAKER_OPEN, "publishing", value=by == 100)
        os._exit(0)
    os.wait()
from cos_events import metrics
print(metrics.render()[0].decode())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere"},
    )
    shown = read(done.stdout)
    assert shown["cos_events_published_total", "cc"] == 111
    assert shown["cos_events_publish_latency_seconds_count", "cc"] == 2
    assert shown["cos_events_publish_latency_seconds_bucket", "0.025", "cc"] == 2
    assert shown["cos_events_breaker_open", "publishing"] == 1, "the latest that a process said"


def test_a_process_answers_scrapes_and_says_when_the_port_is_taken(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        taken.listen()
        with pytest.raises(ConfigurationError, match="METRICS_LISTEN='127.0.0.1.*cannot be listen"):
            metrics.serve(listen)
    metrics.serve(listen)
    with urlopen(f"http://{listen}/metrics", timeout=10) as answer:
        assert read(answer.read().decode())["cos_events_up", "postgresql"] == 1
