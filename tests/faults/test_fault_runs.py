"""The harness itself: it passes a sound bus, and finds what is wrong with a broken one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cos_events.embedded import BrokerName, own_folder
from cos_events.faults.entry import PRELOAD
from cos_events.faults.report import Report
from cos_events.faults.run import FaultRun
from cos_events.faults.schedule import Planned

MUTATIONS = Path(__file__).parent / "mutations"

NO_REDELIVERY = {"COS_EVENTS_REDELIVER_AFTER": "3600"}
"""What two of the mutations lose the relay finds: it sends again whatever was published and has no
delivery row. Without that net, the order of the steps alone must keep the promise. On RabbitMQ it
can: Kombu's Redis transport loses what is on its way to a worker that is killed."""

FROZEN = Planned(10, "broker.freeze", seconds=1.5)
MARKED = Planned(10, "publisher.before_broker")
AT_WORK = Planned(10, "subscriber.before_handler", pick=0.0)
UNHEARD = Planned(20, "application.after_commit")


@pytest.fixture
def fault_run() -> Iterator[Callable[..., Report]]:
    """Commit some events while these faults happen."""
    with own_folder() as home:

        def run(
            broker: BrokerName, faults: list[Planned], mutation: str = "", **environment: str
        ) -> Report:
            if mutation:
                environment |= {PRELOAD: mutation, "PYTHONPATH": str(MUTATIONS)}
            return FaultRun(
                home.path,
                broker,
                events=40,
                rate=20,
                seed=1,
                faults=faults,
                # A sound build ends as soon as all is delivered; a broken one never does.
                patience=5 if mutation else 45,
                quiet=1,
                publishers=1,
                subscribers=1,
                environment=environment,
            ).run()

        yield run


@pytest.mark.usefixtures("rabbitmq_program")
def test_without_redelivery_the_order_of_the_steps_alone_loses_nothing(
    fault_run: Callable[..., Report],
) -> None:
    report = fault_run("rabbitmq", [FROZEN, MARKED, AT_WORK, UNHEARD], **NO_REDELIVERY)
    assert report.ok, report.as_dict()
    assert set(report.kinds().values()) == {1}


@pytest.mark.usefixtures("rabbitmq_program")
def test_a_build_that_marks_before_it_broadcasts_is_found_out(
    fault_run: Callable[..., Report],
) -> None:
    report = fault_run("rabbitmq", [MARKED], "mark_before_broadcast", **NO_REDELIVERY)
    assert (report.ok, report.missing > 0) == (False, True)


@pytest.mark.usefixtures("rabbitmq_program")
def test_a_build_that_acknowledges_before_the_work_is_found_out(
    fault_run: Callable[..., Report],
) -> None:
    report = fault_run("rabbitmq", [AT_WORK], "acknowledge_before_the_work", **NO_REDELIVERY)
    assert (report.ok, report.missing > 0) == (False, True)


def test_a_build_that_skips_the_delivery_row_is_found_out(
    fault_run: Callable[..., Report],
) -> None:
    report = fault_run("redis", [], "skip_the_delivery_row")
    assert (report.ok, report.double_effects > 0) == (False, True)
