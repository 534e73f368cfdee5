"""The rights that docs/deployment.md lists are enough, and no more than that is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from cos_events import Envelope, log_l1, record_event
from cos_events.broadcast import make_broadcaster, make_wire
from cos_events.feeder import Feeder
from cos_events.publisher import Publisher
from cos_events.redelivery import Redelivery
from cos_events.retention import Retention
from cos_events.store import engine

PAGE = Path(__file__).parents[3] / "docs" / "deployment.md"
PASSWORD = "opens-nothing"


@pytest.fixture
def role(
    database: Engine, unique: Callable[[str], str], environment: Callable[..., None]
) -> Iterator[Callable[[str], None]]:
    """Become one of the page's roles."""
    names = {each: unique(each) for each in ("recorder", "worker")}
    (grants,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with database.begin() as connection:
        for name, ours in names.items():
            connection.execute(text(f"CREATE ROLE {ours} LOGIN PASSWORD '{PASSWORD}'"))
            grants = re.sub(rf"\b{name};", f"{ours};", grants)
        connection.execute(text(grants))

    def become(name: str) -> None:
        url = database.url.set(username=names[name], password=PASSWORD)
        environment(DATABASE_URL=url.render_as_string(hide_password=False))
        engine.reset()

    yield become
    engine.reset()
    with database.begin() as connection:
        for ours in names.values():
            connection.execute(text(f"DROP OWNED BY {ours}; DROP ROLE {ours}"))


def test_the_listed_rights_are_enough_for_the_whole_way(
    bus: Any, role: Callable[[str], None], cli: Callable[..., Result]
) -> None:
    had: list[object] = []
    name = bus.declare(lambda message: had.append(message.base_log_id), order_by="data.key")
    role("recorder")
    with Session(engine.get_engine()) as session:
        record_event(session, "event_log", {"key": "a"}, module=bus.module)
        log_l1(session, "event_log", {"level": "i", "component": "c", "message": "m"})
        session.commit()
    role("worker")
    with closing(make_broadcaster()) as broadcaster:
        assert Publisher(engine.get_relaxed_engine(), broadcaster).publish() == 2
    raw = bus.envelopes()[0]
    bus.run(name, raw)
    assert had == [Envelope.decode(raw).base_log_id]
    with closing(make_wire()) as wire:
        Redelivery(engine.get_engine(), wire, lost_after=60.0).sweep()
        Feeder(engine.get_engine(), wire, 1_000, lost_after=60).sweep()
    Retention(engine.get_engine(), 60.0).sweep()
    for command in (["status"], ["verify"], ["dlq", "list", name], ["subscriptions", "list"]):
        done = cli(*command)
        assert done.exit_code == 0, done.output
    assert cli("subscriptions", "pause", name).exit_code == 0
