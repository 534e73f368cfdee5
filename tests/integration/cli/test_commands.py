"""Every command says what it does, refuses in a sentence, and tells scripts by its exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from databases import be_at_revision, take_no_writes
from sqlalchemy import Engine, make_url, text

from cos_events.cli import COMMANDS
from cos_events.embedded import Servers
from cos_events.store import engine

Cli = Callable[..., Result]
Verify = Callable[..., tuple[int, dict[str, dict[str, int]]]]

SUBCOMMANDS = [
    [],
    *([name] for name in COMMANDS),
    ["db", "upgrade"],
    ["dlq", "list"],
    ["dlq", "replay"],
    ["worker", "publisher"],
    ["worker", "subscriber"],
]
HEAVY = ("celery", "kombu", "sqlalchemy", "pydantic", "redis", "rich")
PASSWORD = "hunter2-and-more"


@pytest.fixture
def refusal(
    tmp_path: Path, cli: Cli, sentence: Callable[[Result], str], environment: Callable[..., None]
) -> Callable[..., str]:
    """What a command says in this environment; LINES is a file with one good record."""
    file = tmp_path / "lines.jsonl"
    file.write_text('{"event_type":"event_log","data":{"level":"","component":"","message":""}}')

    def run(command: str, **variables: str) -> str:
        environment(**variables)
        return sentence(cli(*command.replace("LINES", str(file)).split()))

    return run


@pytest.mark.parametrize("command", SUBCOMMANDS, ids=" ".join)
def test_help_of_every_command_starts_without_the_heavy_packages(command: list[str]) -> None:
    code = (
        "import sys; from cos_events.cli import main\n"
        "try: main(sys.argv[1:])\n"
        f"finally: print('loaded', sorted(sys.modules.keys() & set({HEAVY})), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Usage: ")
    assert "--help" in done.stdout
    assert done.stderr.strip() == "loaded []"


def test_an_unknown_command_names_those_there_are(cli: Cli) -> None:
    result = cli("vanish")
    assert result.exit_code == 2
    assert all(name in result.output for name in ["vanish", *COMMANDS])


@pytest.fixture
def complete() -> Callable[..., list[str]]:
    """What a shell is told."""

    def ask(**variables: str) -> list[str]:
        script = Path(sys.executable).with_name("cos-events")
        done = subprocess.run(
            [script], env=os.environ | variables, capture_output=True, text=True, check=True
        )
        assert not done.stderr
        return done.stdout.splitlines()

    return ask


@pytest.fixture
def offered(complete: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """What a shell completes the last word of a line to."""

    def ask(line: str, **variables: str) -> list[str]:
        asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        found = complete(_COS_EVENTS_COMPLETE="bash_complete", **asked, **variables)
        return [each.removeprefix("plain,") for each in found if each]

    return ask


def test_the_completion_script_of_the_shell_is_printed(
    complete: Callable[..., list[str]],
) -> None:
    assert "complete" in "".join(complete(_COS_EVENTS_COMPLETE="bash_source"))


def test_commands_are_completed(offered: Callable[..., list[str]]) -> None:
    assert offered("cos-events ver") == ["verify"]


@pytest.mark.parametrize(
    "command",
    ["dlq replay", "dlq purge", "dlq list", "replay", "verify --subscription"]
    + [f"subscriptions {action}" for action in ("pause", "resume", "remove")],
)
def test_names_of_subscriptions_are_completed(
    offered: Callable[..., list[str]], subscribe: Callable[..., None], command: str
) -> None:
    for name in ("mailer", "mail_archive", "stock"):
        subscribe(name)
    assert offered(f"cos-events {command} mai") == ["mail_archive", "mailer"]


def test_without_a_database_no_name_is_completed(offered: Callable[..., list[str]]) -> None:
    away = {"DATABASE_URL": "postgresql+psycopg2://127.0.0.1:1/none"}
    assert offered("cos-events replay mai", **away) == []


def test_upgrading_twice_leaves_the_database_up_to_date(
    database: Engine, cli: Cli, environment: Callable[..., None]
) -> None:
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("DROP SCHEMA cos_events, mem0_cc, cos_l2 CASCADE"))
    first, second = cli("db", "upgrade"), cli("db", "upgrade")
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "is now at" in first.output
    assert "is up to date" in second.output
    assert cli("verify").exit_code == 0


def test_a_database_of_a_newer_version_stays_as_it_is(database: Engine, cli: Cli) -> None:
    be_at_revision(database, "0099")
    upgraded, shown = cli("db", "upgrade"), cli("db", "current")
    assert (upgraded.exit_code, shown.exit_code) == (0, 0)
    assert upgraded.output.startswith("the database stays as it is: it is at 0099, workers_0001, ")
    assert "does not know 0099" in shown.output
    assert json.loads(cli("db", "current", "--json").output) == {
        "database": ["0099", "workers_0001"],
        "version": ["0004", "workers_0001"],
        "behind": False,
    }


def test_db_current_fails_where_the_database_is_behind(database: Engine, cli: Cli) -> None:
    assert cli("db", "current").output == "the database is up to date (0004, workers_0001)\n"
    be_at_revision(database, "0003")
    done = cli("db", "current")
    assert done.exit_code == 1
    assert "at 0003, workers_0001, this version at 0004, workers_0001: run" in done.output


def test_a_database_that_takes_no_writes_is_one_sentence(
    database: Engine, cli: Cli, sentence: Callable[[Result], str], subscribe: Callable[..., None]
) -> None:
    subscribe("mailer")
    take_no_writes(database)
    engine.reset()
    assert "accepts no writes: is it a standby" in sentence(cli("subscriptions", "pause", "mailer"))


@pytest.mark.parametrize(
    "command",
    ["db upgrade", "verify", "status", "dlq list x", "dlq replay x", "record LINES"],
)
def test_a_database_that_is_away_or_refuses_is_one_sentence_without_the_password(
    command: str, database: Engine, refusal: Callable[..., str]
) -> None:
    url = make_url(os.environ["DATABASE_URL"]).set(password=PASSWORD)
    for wrong in (url, url.set(port=1)):
        said = refusal(command, DATABASE_URL=wrong.render_as_string(hide_password=False))
        assert PASSWORD not in said
        assert str(wrong.port) in said


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://me:{PASSWORD}@127.0.0.1/db",
        f"postgresql://me:{PASSWORD}@127.0.0.1:port/db",
        f"postgresql://me:{PASSWORD}@[::1/db",
        f"postgresql://me:/{PASSWORD}@127.0.0.1:1/db",
        f"postgresql://me:#{PASSWORD}?@127.0.0.1:1/db",
        f"postgresql://127.0.0.1:1/db?user=me&password={PASSWORD}",
    ],
)
def test_a_wrong_database_url_is_one_sentence_without_the_password(
    url: str, refusal: Callable[..., str]
) -> None:
    said = refusal("verify", DATABASE_URL=url)
    assert "DATABASE_URL" in said
    assert PASSWORD not in said


@pytest.mark.parametrize(
    "command", ["verify", "status", "dlq list x", "dlq replay x", "record LINES"]
)
def test_missing_tables_are_one_sentence_that_names_the_command_to_run(
    command: str, servers: Servers, refusal: Callable[..., str]
) -> None:
    urls = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
    assert "run `cos-events db upgrade`" in refusal(command, **urls)


def test_wrong_settings_are_all_named_with_what_is_allowed(
    refusal: Callable[..., str],
) -> None:
    wrong = {"COS_EVENTS_MAX_PAYLOAD_BYTES": "12", "REDIS_URL": f"http://:{PASSWORD}@localhost"}
    said = refusal("status", **wrong)
    assert "COS_EVENTS_MAX_PAYLOAD_BYTES='12'" in said
    assert "REDIS_URL='http://…': must start with redis:// or rediss://" in said
    assert PASSWORD not in said


def test_a_channel_url_that_redis_cannot_read_is_one_sentence_or_a_channel_that_is_down(
    database: Engine, cli: Cli, environment: Callable[..., None]
) -> None:
    environment(REDIS_URL=f"redis://:{PASSWORD}@127.0.0.1:port/0")
    result = cli("status")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert PASSWORD not in result.output


def test_status_shows_what_waits_where(
    broker_url: str,
    subscribe: Callable[..., None],
    add_event: Callable[..., object],
    unique: Callable[[str], str],
    cli: Cli,
) -> None:
    name = unique("sub")
    subscribe(name)
    add_event()
    add_event(published=5, **{name: "retrying"})
    add_event(published=5, **{name: "dead"})
    status = json.loads(cli("status", "--json").output)
    assert status["outbox"]["rows"] == 1
    assert 0 < status["outbox"]["oldest_seconds"] < 60
    assert status["broker"]["state"] == status["channel"]["state"] == "up"
    assert status["broker"]["why"] is status["channel"]["why"] is None
    assert status["subscriptions"] == [
        {
            "subscription": name,
            "condition": "live",
            "queued": 0,
            "held": 0,
            "retrying": 1,
            "dead": 1,
        }
    ]
    assert status["problems"] == []
    table = cli("status").output
    assert name in table
    assert ":***@" in table


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e308", "-1"])
def test_what_is_no_number_of_seconds_is_a_wrong_option(
    database: Engine, cli: Cli, seconds: str
) -> None:
    assert cli("verify", "--grace", seconds).exit_code == 2


def test_what_is_not_utf_8_is_one_sentence(
    database: Engine, cli: Cli, sentence: Callable[[Result], str]
) -> None:
    assert sentence(cli("verify", "--module", "\udcff")) == r"'\udcff' is not UTF-8"


def test_status_says_what_stands_still(
    subscribe: Callable[..., None], add_event: Callable[..., object], cli: Cli
) -> None:
    subscribe("mailer")
    add_event(published=200)
    (problem,) = json.loads(cli("status", "--json").output)["problems"]
    said = "mailer has not received an event published 3 m ago: are its workers running, "
    assert problem == f"{said}and keeping up?"
    assert f"\nproblem   {problem}" in cli("status").output


def test_status_checks_for_cron(
    subscribe: Callable[..., None], add_event: Callable[..., object], cli: Cli
) -> None:
    assert cli("status", "--check").exit_code == 0
    subscribe("mailer")
    add_event(published=200)
    assert cli("status").exit_code == 0
    for options in (["--check"], ["--check", "--json"]):
        done = cli("status", *options)
        assert (done.exit_code, "mailer has not received" in done.output) == (1, True)


def test_status_with_broker_and_channel_down_still_tells_what_the_database_knows(
    subscribe: Callable[..., None],
    add_event: Callable[..., object],
    cli: Cli,
    environment: Callable[..., None],
) -> None:
    subscribe("mailer")
    add_event(published=5, mailer="dead")
    environment(BROKER_URL="redis://:pw@127.0.0.1:1/0", REDIS_URL="redis://:pw@127.0.0.1:1/0")
    result = cli("status", "--json")
    assert result.exit_code == 0
    status = json.loads(result.output)
    assert status["broker"]["url"] == "redis://:***@127.0.0.1:1/0"
    for wire in ("broker", "channel"):
        assert status[wire]["state"] == "down"
        assert "refused" in status[wire]["why"]
    assert status["subscriptions"][0]["queued"] is None
    assert status["subscriptions"][0]["dead"] == 1


def test_a_broker_that_refuses_the_login_is_down(
    rabbitmq_url: str,
    subscribe: Callable[..., None],
    cli: Cli,
    environment: Callable[..., None],
) -> None:
    subscribe("mailer")
    environment(BROKER_URL=re.sub(r"://.*@", f"://nobody:{PASSWORD}@", rabbitmq_url))
    result = cli("status", "--json")
    status = json.loads(result.output)
    assert "ACCESS_REFUSED" in status["broker"]["why"]
    assert status["subscriptions"][0]["queued"] is None
    assert PASSWORD not in result.output


def test_an_option_that_the_driver_does_not_know_is_one_sentence(
    refusal: Callable[..., str],
) -> None:
    said = refusal("status", DATABASE_URL=f"postgresql://me@127.0.0.1/db?pasword={PASSWORD}")
    assert 'invalid connection option "pasword"' in said
    assert PASSWORD not in said


@pytest.mark.parametrize("command", ["status", "db upgrade"])
def test_a_role_without_rights_is_one_sentence_that_says_where_they_are_listed(
    command: str, database: Engine, unique: Callable[[str], str], refusal: Callable[..., str]
) -> None:
    role = unique("powerless")
    with database.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'"))
    url = database.url.set(username=role, password=PASSWORD)
    try:
        said = refusal(command, DATABASE_URL=url.render_as_string(hide_password=False))
    finally:
        with database.begin() as connection:
            connection.execute(text(f"DROP ROLE {role}"))
    assert "permission denied" in said
    assert PASSWORD not in said
    assert "docs/deployment.md" in said


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(
    subscribe: Callable[..., None],
    add_event: Callable[..., object],
    program: Callable[..., subprocess.Popen[str]],
) -> None:
    subscribe("mailer")
    for _ in range(100):
        add_event(published=5, mailer="dead")
    process = program("dlq", "list", "mailer", "--json")
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.wait(120) == 141
    assert process.stderr.read() == ""


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_shows_no_marks_of_its_layout(command: str, cli: Cli) -> None:
    result = cli(command, "--help")
    assert result.exit_code == 0
    assert "\\b" not in result.output
    assert "\b" not in result.output
