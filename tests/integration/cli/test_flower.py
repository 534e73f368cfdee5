"""`flower`: closed without its password; shows tasks by name and nothing that an event holds."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from click.testing import Result
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from cos_events import record_event
from cos_events.cli.flower import ensure_password
from cos_events.settings import get_settings

ROOT = Path(__file__).parents[3]
AUTH = ("watcher", "see no evil")
SECRET = "Nobody must read this prompt"


@pytest.mark.parametrize(
    ("auth", "says"),
    [
        ("", "Flower does not start open: set FLOWER_BASIC_AUTH=user:password"),
        ("watcher", "must be user:password"),
        (":long enough", "must be user:password"),
        ("watcher:short", "8 characters or more"),
        ("watcher:long enough,guest:", "8 characters or more"),
    ],
)
def test_without_a_password_it_does_not_start(
    cli: Callable[..., Result],
    sentence: Callable[[Result], str],
    environment: Callable[..., None],
    auth: str,
    says: str,
) -> None:
    environment(DATABASE_URL="postgresql://127.0.0.1/none", FLOWER_BASIC_AUTH=auth)
    refusal = sentence(cli("flower"))
    assert says in refusal
    assert not auth or auth not in refusal


def test_up_makes_a_password_once_and_keeps_it_to_its_owner(
    environment: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLOWER_BASIC_AUTH", raising=False)
    file = tmp_path / "flower.password"
    for _ in range(2):
        environment(FLOWER_BASIC_AUTH="")
        assert ensure_password(tmp_path) == f"user cos, password in {file}"
        password = get_settings().flower_basic_auth
        assert password is not None
        assert password.get_secret_value() == f"cos:{file.read_text().strip()}"
    environment(FLOWER_BASIC_AUTH="watcher:long enough")
    assert ensure_password(tmp_path) == "user watcher, password in FLOWER_BASIC_AUTH"


@pytest.fixture
def workers(
    program: Callable[..., subprocess.Popen[str]],
    redis_broker: str,
    database: Engine,
    environment: Callable[..., None],
    unique: Callable[[str], str],
    tmp_path: Path,
    eventually: Callable[..., None],
) -> str:
    """A publisher and workers of three subscriptions; gives the prefix of their names."""
    prefix = unique("seen")
    environment(BUSAPP_PREFIX=prefix, PYTHONPATH=f"{ROOT / 'tests/apps'}:{ROOT}")
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE effect (kind text, event_id uuid, pid int)"))
    commands = [
        ("publisher", "-Q", f"cos_events.publish,{prefix}_plain,{prefix}_flaky"),
        ("subscriber", f"{prefix}_slow"),
    ]
    logs = [tmp_path / f"{kind}.log" for kind, *_ in commands]
    for (kind, *args), log in zip(commands, logs, strict=True):
        program("worker", kind, *args, "-A", "busapp", "-E", "-c", 1, log=log)
    eventually(lambda: all(" ready." in log.read_text() for log in logs))
    return prefix


def test_every_page_names_the_subscriptions_and_none_shows_what_an_event_holds(
    workers: str,
    program: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    database: Engine,
    eventually: Callable[..., None],
) -> None:
    log = tmp_path / "flower.log"
    program("flower", "-A", "busapp", "--port", 0, log=log, FLOWER_BASIC_AUTH=":".join(AUTH))
    eventually(lambda: "Visit me at" in log.read_text())
    found = re.search(r"Visit me at (http://127\.0\.0\.1:\d+)", log.read_text())
    assert found, log.read_text()
    url, slow = found[1], f"{workers}_slow"
    for auth in (None, ("watcher", "guess")):
        assert httpx.get(f"{url}/tasks", auth=auth).status_code == 401
        assert httpx.get(f"{url}/api/tasks", auth=auth).status_code == 401

    with Session(database) as session, session.begin():
        for event_type in ("flaky", "slow", "slow", "slow"):  # one hangs, others wait behind it
            record_event(session, event_type, {"text": SECRET})
    with httpx.Client(base_url=url, auth=AUTH, timeout=20) as flower:

        def seen() -> set[tuple[str, str]]:
            return {
                (each["name"], each["state"]) for each in flower.get("/api/tasks").json().values()
            }

        wanted = {
            ("cos_events.publish", "SUCCESS"),
            (f"{workers}_plain", "SUCCESS"),
            (f"{workers}_flaky", "SUCCESS"),
            (slow, "STARTED"),
        }
        eventually(lambda: wanted <= seen())
        names = flower.get("/api/workers?refresh=1").json()
        (busy,) = [name for name in names if name.startswith(slow)]
        table = "/tasks/datatable?draw=1&start=0&length=100&search[value]=&order[0][column]=0"
        pages = [
            *("/", "/workers", "/tasks", "/broker", "/metrics", "/api/tasks", "/api/task/types"),
            f"{table}&order[0][dir]=asc&columns[0][data]=name",
            *(f"/worker/{name}" for name in names),
            *(
                f"/{kind}/{task}"
                for task in flower.get("/api/tasks").json()
                for kind in ("task", "api/task/info")
            ),
            "/api/workers",
        ]
        shown = {page: flower.get(page) for page in pages}
        assert {page: each.status_code for page, each in shown.items()} == dict.fromkeys(pages, 200)
        for page, answer in shown.items():
            assert SECRET not in answer.text, page
        # A page on which nothing happened would show nothing either.
        told = shown["/api/workers"].json()[busy]
        assert [each["name"] for each in told["active"]] == [slow]
        assert "&lt;1 events&gt;" in shown[f"/worker/{busy}"].text
        assert flower.post(f"/api/worker/shutdown/{busy}").status_code == 403
