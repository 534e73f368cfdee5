"""`dlq replay --dry-run`: which dead letters are tried, and which cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

from click.testing import Result

AddEvent = Callable[..., UUID]
Cli = Callable[..., Result]


def test_a_dry_run_tries_all_of_them(
    subscribe: Callable[..., None], add_event: AddEvent, cli: Cli
) -> None:
    subscribe("activity")
    for _ in range(102):
        add_event(published=60, activity="dead")
    result = cli("dlq", "replay", "activity", "--dry-run", "--json")
    assert len(json.loads(result.output)) == 102
    limited = cli("dlq", "replay", "activity", "--dry-run", "--json", "--limit", 2)
    assert len(json.loads(limited.output)) == 2


def test_a_dry_run_does_not_edit(cli: Cli) -> None:
    result = cli("dlq", "replay", "mailer", "--dry-run", "--edit", uuid4())
    assert result.exit_code == 2
    assert "--dry-run changes nothing, --edit does" in result.output


def test_a_dry_run_of_a_handler_without_a_session_is_refused(
    subscribe: Callable[..., None], add_event: AddEvent, run_program: Callable[..., Any]
) -> None:
    subscribe("mailer")
    add_event(published=60, mailer="dead")
    app = "cos_events.cli.demo.app"
    result = run_program("dlq", "replay", "mailer", "--dry-run", "-A", app)
    assert result.returncode == 1
    assert "mailer takes no session: what its handler does could not be undone" in result.stderr
    assert "Traceback" not in result.stderr
