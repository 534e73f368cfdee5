"""The README's code runs as it stands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from cos_events.app import register_subscriptions
from cos_events.settings import Settings, get_settings
from cos_events.store.models import DeliveryRow, OutboxRow

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@cache
def run_blocks() -> dict[str, Any]:
    """Both blocks, run as one module."""
    names: dict[str, Any] = {"__name__": "shop"}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec", dont_inherit=True), names)  # noqa: S102
    return names


@pytest.fixture
def shop(database: Engine, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The README's application, on a database of its own."""
    monkeypatch.setattr("cos_events.capture.wake", lambda *_: None)
    monkeypatch.setenv("BROKER_URL", get_settings().broker_url)
    register_subscriptions(run_blocks()["app"])
    return run_blocks()


def test_an_order_is_recorded_and_delivered_to_both_subscriptions(
    shop: dict[str, Any], database: Engine
) -> None:
    with Session(database) as session:
        shop["place_order"](session, 7)
    with database.connect() as connection:
        (envelope,) = connection.scalars(select(OutboxRow.envelope)).all()
    for name in ("receipts", "stock"):
        shop["app"].tasks[name].apply(args=([envelope],)).get()
    with database.connect() as connection:
        rows = connection.execute(select(DeliveryRow.subscription, DeliveryRow.state)).all()
    assert sorted(rows) == [("receipts", "delivered"), ("stock", "delivered")]


def test_the_recording_page_records_as_it_stands(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cos_events.capture.wake", lambda *_: None)
    page = (ROOT / "docs/recording.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {"__name__": "shop"}
    exec(compile(block, "recording.md", "exec", dont_inherit=True), names)  # noqa: S102
    with Session(database) as session:
        names["place_order"](session, 7, Decimal("9.50"))
    with database.connect() as connection:
        (envelope,) = connection.scalars(select(OutboxRow.envelope)).all()
    assert json.loads(envelope)["data"].items() > {"number": 7, "total": "9.50"}.items()


def test_a_rejected_order_is_a_dead_letter(shop: dict[str, Any], database: Engine) -> None:
    shop["app"].conf.broker_url = "memory://"
    with Session(database) as session:
        shop["place_order"](session, -1)
    with database.connect() as connection:
        (envelope,) = connection.scalars(select(OutboxRow.envelope)).all()
    assert shop["app"].tasks["receipts"].apply(args=([envelope],)).state == "FAILURE"
    with database.connect() as connection:
        row = connection.execute(select(DeliveryRow.state, DeliveryRow.error)).one()
    assert row == ("dead", "rejected: Rejected: no such order")


def test_its_code_satisfies_a_strict_type_checker(tmp_path: Path) -> None:
    module = tmp_path / "shop.py"
    module.write_text("\n\n".join(BLOCKS))
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(module)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_setting_stands_in_the_documentation_with_its_default() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    table = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", page, re.MULTILINE))
    settings = {
        (field.alias or name).upper(): field.default
        for name, field in Settings.model_fields.items()
    }
    assert table.keys() == settings.keys()
    defaults = {
        name: str(default).lower() if isinstance(default, bool | None) else str(default)
        for name, default in settings.items()
        if name != "BROKER_URL"
    }
    assert {name: table[name] for name in defaults} == defaults


@pytest.mark.parametrize(
    "file",
    ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))],
)
def test_every_link_and_module_of_a_page_exists(file: str) -> None:
    page = (ROOT / file).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page):
        assert ((ROOT / file).parent / target).exists(), target
    for test in re.findall(r"`(tests/[\w/]+\.py)`", page):
        assert (ROOT / test).exists(), test
