"""`dlq list` and `show`: dead letters for people and for scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from uuid import UUID, uuid4

import pytest
from click.testing import Result

Cli = Callable[..., Result]
AddEvent = Callable[..., UUID]


def test_the_list_shows_dead_letters_oldest_first_and_whole(
    subscribe: Callable[..., None], add_event: AddEvent, cli: Cli
) -> None:
    subscribe("mailer")
    dead = [add_event(published=60, mailer="dead", archive="dead") for _ in range(3)]
    add_event(published=60, mailer="retrying", archive="dead")
    letters = json.loads(cli("dlq", "list", "mailer", "--json").output)
    assert [letter["event_id"] for letter in letters] == list(map(str, dead))
    assert {letter["attempts"] for letter in letters} == {3}
    assert letters[0]["error"] == "ValueError: no good"
    limited = json.loads(cli("dlq", "list", "mailer", "--json", "--limit", 2).output)
    assert limited == letters[:2]


@pytest.mark.parametrize("error", ["ValueError: no good", "ValueError: no [/good] [or bad]"])
def test_the_table_of_dead_letters_can_be_searched(
    error: str, subscribe: Callable[..., None], add_event: AddEvent, cli: Cli
) -> None:
    subscribe("mailer")
    event = add_event(published=60, error=error, mailer="dead")
    result = cli("dlq", "list", "mailer")
    assert result.exception is None
    assert any(str(event) in line for line in result.output.splitlines()), result.output
    assert error in " ".join(result.output.split())


def test_a_narrow_terminal_breaks_no_id_and_no_time(
    subscribe: Callable[..., None], add_event: AddEvent, on_terminal: Callable[..., list[str]]
) -> None:
    subscribe("graph_staging")
    error = f"retries exhausted: OSError: {' '.join(['refused'] * 20)}"
    event = add_event(published=60, error=error, graph_staging="dead")
    lines = on_terminal("dlq", "list", width=80)
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == [str(event), "graph_staging", "event_log", "3"]
    assert re.fullmatch(r"    \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ  retries exhausted: .*", lines[3])
    assert " ".join(" ".join(lines[3:]).split()).endswith(error)
    (_, line) = on_terminal("dlq", "list", width=400)
    assert line.split()[:4] == lines[2].split()
    assert line.rstrip().endswith(error)


def test_where_there_is_nothing_to_list_it_says_so(
    subscribe: Callable[..., None], cli: Cli, redis_broker: str
) -> None:
    assert cli("subscriptions", "list").output == "no subscriptions yet: start a worker\n"
    assert cli("status").output.endswith("\nno subscriptions yet: start a worker\n")
    subscribe("activity")
    assert cli("dlq", "list").output == "no dead letters\n"
    assert cli("dlq", "list", "activity", "--unusable").output == "no unusable messages\n"
    assert cli("dlq", "replay", "activity", "--dry-run").output == "no dead letters\n"
    assert json.loads(cli("dlq", "list", "--json").output) == []


def test_dead_letters_are_chosen_by_type_error_and_age(
    subscribe: Callable[..., None], add_event: AddEvent, cli: Cli
) -> None:
    subscribe("mailer")
    plain = add_event(published=60, mailer="dead")
    other_type = add_event(event_type="order_placed", published=60, mailer="dead")
    other_error = add_event(
        published=60, mailer="dead", error="retries exhausted: OSError: [Errno 111]"
    )

    def listed(*options: str) -> list[str]:
        letters = json.loads(cli("dlq", "list", "--json", *options).output)
        return [letter["event_id"] for letter in letters]

    assert listed() == [str(plain), str(other_type), str(other_error)]
    assert listed("--event-type", "order_placed") == [str(other_type)]
    assert listed("--error", "OSError") == [str(other_error)]
    assert listed("--error", "Error") == []
    assert listed("--newer-than", "1h") == listed()
    assert listed("--older-than", "1h") == []
    assert listed("--event", str(plain), "--error", "OSError") == []


def test_show_tells_everything_about_one(
    subscribe: Callable[..., None],
    add_event: AddEvent,
    cli: Cli,
    sentence: Callable[[Result], str],
) -> None:
    subscribe("mailer")
    event = add_event(published=60, mailer="dead")
    output = cli("dlq", "show", event).output
    for part in (str(event), "mailer", "ValueError: no good", '"message": "hello"'):
        assert part in output
    (letter,) = json.loads(cli("dlq", "show", event, "--json").output)
    assert (letter["attempts"], letter["correction"]) == (3, None)
    died_at = datetime.fromisoformat(letter["died_at"])
    assert re.search(rf"^died_at +{died_at:%F %T}Z$", output, re.MULTILINE)
    missing = uuid4()
    expected = f"no subscription has a dead letter {missing}: see `dlq list`"
    assert sentence(cli("dlq", "show", missing)) == expected


def test_show_puts_a_line_between_two_of_one_event(add_event: AddEvent, cli: Cli) -> None:
    event = add_event(published=60, mailer="dead", archive="dead")
    first, second = cli("dlq", "show", event).output.split("\n\n")
    assert (first.split()[:2], second.split()[:2]) == (
        ["subscription", "archive"],
        ["subscription", "mailer"],
    )
