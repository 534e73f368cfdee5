"""Compose, GitHub Actions and the Makefile agree with each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import Group

from cos_events.cli import main
from cos_events.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
JOBS: dict[str, Any] = WORKFLOW["jobs"]
TARGETS = set(re.findall(r"^\.PHONY: (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def default(image: str) -> str:
    found = re.fullmatch(r"\$\{\w+:-(.+)\}", image)
    assert found, f"{image} is no variable with a default"
    return found[1]


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_of_the_stack_is_hardened_watched_and_restarted(name: str) -> None:
    service = SERVICES[name]
    assert default(service["image"])
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is (name != "rabbitmq")
    once = name == "migrate"
    assert service["restart"] == ("on-failure" if once else "unless-stopped")
    assert once or service["healthcheck"]["test"]
    assert "user" in service or "USER 10001" in (ROOT / "ops/Dockerfile").read_text()


def test_ports_are_variables_and_open_on_this_machine_only() -> None:
    ports = [port for each in SERVICES.values() for port in each.get("ports", [])]
    assert len(ports) == 7
    for port in ports:
        assert re.fullmatch(r"127\.0\.0\.1:\$\{\w+_PORT:-\d+\}:\d+", port), port


def test_each_process_runs_a_command_that_there_is_with_settings_that_there_are() -> None:
    known = {(info.alias or name).upper() for name, info in Settings.model_fields.items()}
    ours = {name: each for name, each in SERVICES.items() if "build" in each}
    assert set(ours) == {"migrate", "publisher", "subscribers", "api", "flower"}
    for service in ours.values():
        command: Any = main
        for word in service["command"][:2]:
            if isinstance(command, Group):
                command = command.get_command(None, word)  # type: ignore[arg-type]
                assert command is not None, service["command"]
        # Named for the telemetry of workers, where that is installed.
        assert set(service["environment"]) - {"COS_EVENTS_METRICS_LISTEN"} <= known


def test_every_command_of_the_workflow_is_a_make_target() -> None:
    commands = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        assert command.startswith("make ")
        targets = re.findall(r"(?<= )[a-z][a-z-]*(?= |$)", command.partition("ARGS=")[0])
        assert targets, command
        assert set(targets) <= TARGETS, command


def test_the_workflow_has_few_rights_and_actions_of_a_major_version() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert set(JOBS) == {"check", "test", "containers", "compose", "dist"}
    for job in JOBS.values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 40
        for step in job["steps"]:
            assert "uses" not in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])


def test_the_workflow_tests_every_python_on_the_stacks_own_servers() -> None:
    assert JOBS["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    for name in ("postgres", "redis", "rabbitmq"):
        assert JOBS["test"]["services"][name]["image"] == default(SERVICES[name]["image"])
        assert "--health-cmd" in JOBS["test"]["services"][name]["options"]
