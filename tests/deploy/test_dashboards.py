"""Dashboard and alert rules ask only for series and labels that exist."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nova.execution.exposition import SERIES

DEPLOY = Path(__file__).parents[2] / "deploy"
_HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
_SELECTOR = re.compile(r"\bnova_([a-z_]+)(?:\{([^}]*)\})?")
_BY = re.compile(r"\bby \(([^)]*)\)")


def dashboard() -> Iterator[tuple[str, str]]:
    board = json.loads((DEPLOY / "grafana/nova.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def alerts() -> Iterator[tuple[str, str]]:
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def wrong(expression: str) -> list[str]:
    """Everything in one expression that no series has."""
    problems, labels = [], {"le"}
    for name, selector in _SELECTOR.findall(expression):
        base = next((name.removesuffix(end) for end in _HISTOGRAM_PARTS if name.endswith(end)), name)
        series = SERIES.get(base) or SERIES.get(name)
        if series is None or (series.kind == "histogram") != (base != name):
            problems.append(f"nova_{name} is no series")
            continue
        labels |= set(series.labels)
        asked = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", selector or ""))
        problems += [f"nova_{name} has no label {label}" for label in asked - set(series.labels)]
    for names in _BY.findall(expression):
        problems += [f"no series here has the label {n.strip()}" for n in names.split(",") if n.strip() not in labels]
    if not _SELECTOR.search(expression):
        problems.append("asks for no series of ours")
    return problems


@pytest.mark.parametrize(("title", "expression"), [*dashboard(), *alerts()])
def test_every_expression_names_existing_series_and_labels(title: str, expression: str) -> None:
    assert wrong(expression) == [], f"{title}: {expression}"


@pytest.mark.parametrize(
    "expression",
    [
        "nova_unheard_of_total",
        "sum(nova_invocations_total{colour='red'})",
        "sum by (colour) (nova_queue_depth)",
        "rate(nova_invocation_duration_milliseconds[5m])",
        "up",
    ],
)
def test_the_check_notices_what_does_not_exist(expression: str) -> None:
    assert wrong(expression) != []


def test_prometheus_reads_the_alerts_beside_its_settings() -> None:
    settings = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert all((DEPLOY / "prometheus" / name).is_file() for name in settings["rule_files"])
