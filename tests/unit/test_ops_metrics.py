"""Prometheus's rules and Grafana's board ask only for metrics, and labels, that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cos_events.telemetry import names

OPS = Path(__file__).parents[2] / "ops"
ALERTS = yaml.safe_load((OPS / "prometheus/alerts.yml").read_text())
CONFIG = yaml.safe_load((OPS / "prometheus/prometheus.yml").read_text())
BOARD = json.loads((OPS / "grafana/dashboards/cos-events.json").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]

SERIES = {
    series: metric
    for metric in names.METRICS
    for series in (
        [f"{metric.name}_{part}" for part in ("bucket", "sum", "count")]
        if metric.kind == "histogram"
        else [metric.name]
    )
}
"""What can be asked for, and the metric that it belongs to."""


def board_queries() -> Iterator[str]:
    yield from (each["definition"] for each in BOARD["templating"]["list"])
    for panel in BOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))


QUERIES = [*board_queries(), *(rule["expr"] for rule in RULES)]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_a_metric_by_labels_that_it_has(query: str) -> None:
    asked = re.findall(r"\bcos_events_\w+", query)
    assert asked or query.startswith("up{"), "it asks for nothing of ours"
    assert set(asked) <= SERIES.keys()
    known = {label for name in asked for label in SERIES[name].labels} | {"le", "job"}
    grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", query)
    used = {label.strip() for labels in grouped for label in labels.split(",")}
    used |= set(re.findall(r"[{,]\s*(\w+)=~?\"", query))
    assert used <= known


@pytest.mark.parametrize("query", [each for each in QUERIES if "cos_events" in each])
def test_what_every_process_shows_is_not_summed_and_counters_are(query: str) -> None:
    for name in re.findall(r"\bcos_events_\w+", query):
        ranged = re.search(rf"(rate|increase)\({name}\W", query)
        if SERIES[name].kind == "gauge":
            before = query.partition(name)[0]
            assert re.search(r"(max|min|absent|label_values)( by \([^)]*\))? ?\($", before), name
        else:
            assert ranged, f"{name} only ever grows"


def test_the_board_shows_every_metric() -> None:
    shown = {SERIES[name] for query in board_queries() for name in SERIES if name in query}
    assert shown == set(names.METRICS)


def test_the_board_is_one_that_grafana_is_told_of() -> None:
    (source,) = yaml.safe_load(
        (OPS / "grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"]
    (provider,) = yaml.safe_load(
        (OPS / "grafana/provisioning/dashboards/cos-events.yml").read_text()
    )["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    panels = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert BOARD["uid"]
    assert all(_fits(panel["gridPos"]) for panel in BOARD["panels"])


def _fits(place: dict[str, Any]) -> bool:
    return 0 <= place["x"] < place["x"] + place["w"] <= 24


def test_each_alert_says_what_is_wrong_and_how_bad_it_is() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}


def test_prometheus_loads_the_rules_and_scrapes_where_processes_listen() -> None:
    assert CONFIG["rule_files"] == ["alerts.yml"]
    (job,) = CONFIG["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    services = yaml.safe_load((OPS.parent / "docker-compose.yml").read_text())["services"]
    for name in found["names"]:
        listen = services[name]["environment"]["COS_EVENTS_METRICS_LISTEN"]
        assert listen == f"0.0.0.0:{found['port']}"


def test_the_alerts_fire_when_they_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: its own tests of the alerts did not run")
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts.test.yml"]):
        done = subprocess.run(
            [promtool, *command],
            cwd=OPS / "prometheus",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
