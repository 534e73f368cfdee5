"""`config` says what is in force and where it came from, and no secret."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cos_events.settings import Settings

Cli = Callable[..., Result]


@pytest.fixture
def configured(
    environment: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value from the environment, two from a `.env` file, the rest by default."""
    (tmp_path / ".env").write_text(
        "COS_EVENTS_RETAIN_FOR=3d\nFLOWER_BASIC_AUTH=someone:not-to-be-shown\n"
        "COS_EVENTS_DEBUG_TOKEN=not-to-be-shown-either\n"
    )
    monkeypatch.chdir(tmp_path)
    environment(DATABASE_URL="postgresql://cos:not-to-be-shown@127.0.0.1/cos")


def test_config_shows_every_setting_with_where_its_value_came_from(
    configured: None, cli: Cli
) -> None:
    result = cli("config", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    fields = Settings.model_fields.items()
    assert set(found) == {(info.alias or name).upper() for name, info in fields}
    assert found["DATABASE_URL"]["from"] == "environment"
    assert found["COS_EVENTS_RETAIN_FOR"] == {"value": "3d", "from": ".env"}
    assert found["COS_EVENTS_TRACE_CONTENT"] == {"value": False, "from": "default"}
    assert found["COS_EVENTS_METRICS_LISTEN"] == {"value": None, "from": "default"}
    assert found["COS_EVENTS_WAKE_INTERVAL"] == {"value": 0.003, "from": "default"}
    table = cli("config").output
    for shown in (
        *(r"COS_EVENTS_QUEUE_DEPTH +10000", r"COS_EVENTS_TRACE_CONTENT +false"),
        r"COS_EVENTS_METRICS_LISTEN +none",
    ):
        assert re.search(rf"^{shown} +default *$", table, re.MULTILINE)
    assert found["COS_EVENTS_QUEUE_DEPTH"] == {"value": 10_000, "from": "default"}


def test_a_variable_counts_in_lower_case_too_and_not_when_it_is_empty(
    configured: None, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("cos_events_queue_depth", "2000")
    monkeypatch.setenv("COS_EVENTS_API_PORT", "")
    found = json.loads(cli("config", "--json").output)
    assert found["COS_EVENTS_QUEUE_DEPTH"] == {"value": 2_000, "from": "environment"}
    assert found["COS_EVENTS_API_PORT"] == {"value": 8_000, "from": "default"}


def test_a_variable_that_is_no_setting_is_named(
    configured: None, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COS_EVENTS_QUEUE_DEPHT", "5")
    monkeypatch.setenv("COS_EVENTS_HOME", "/nowhere")
    assert cli("config", "--json").stderr.splitlines() == [
        "COS_EVENTS_QUEUE_DEPHT is set, but there is no such setting: is it misspelt?"
    ]


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_config_masks_secrets(configured: None, cli: Cli, options: list[str]) -> None:
    result = cli("config", *options)
    assert result.exit_code == 0, result.output
    assert "cos:***@127.0.0.1" in result.output
    assert "not-to-be-shown" not in result.output


def test_config_names_every_wrong_value(
    environment: Callable[..., None], cli: Cli, sentence: Callable[[Result], str]
) -> None:
    environment(COS_EVENTS_QUEUE_DEPTH="deep", REDIS_URL="http://127.0.0.1")
    said = sentence(cli("config"))
    assert "COS_EVENTS_QUEUE_DEPTH='deep'" in said
    assert "REDIS_URL='http://…'" in said
