"""Dashboard and alert rules ask only for series and labels that exist."""

import asyncio
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from nova.execution.exposition import SERIES
from nova.observability.gauges import PlatformGauges
from nova.store.gauges import GaugeStore, PlatformNumbers

DEPLOY = Path(__file__).parents[2] / "deploy"
_HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
_SELECTOR = re.compile(r"\bnova_([a-z_]+)(?:\{([^}]*)\})?")
_BY = re.compile(r"\bby \(([^)]*)\)")


class Numbers(GaugeStore):
    """One of everything that the platform's gauges show."""

    def __init__(self) -> None:
        pass

    async def read(self, tenants: Collection[str] | None = None) -> PlatformNumbers:
        return PlatformNumbers([("t", "queued", 1)], {"t": 1}, [("d", "n", True)], [("comet", "active", 1)], 1.0)


def series() -> dict[str, tuple[bool, set[str]]]:
    """Every series without prefix: whether it is a histogram, and its labels."""
    found = {name: (one.kind == "histogram", set(one.labels)) for name, one in SERIES.items()}
    text = asyncio.run(PlatformGauges(Numbers(), namespace="nova").read())
    for family in text_string_to_metric_families(text):
        labels = {label for sample in family.samples for label in sample.labels}
        found[family.name.removeprefix("nova_")] = (False, labels)
    return found


KNOWN: Mapping[str, tuple[bool, set[str]]] = series()


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
        histogram, own = KNOWN.get(base, (False, set()))
        if base not in KNOWN or histogram != (base != name):
            problems.append(f"nova_{name} is no series")
            continue
        labels |= own
        asked = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", selector or ""))
        problems += [f"nova_{name} has no label {label}" for label in asked - own]
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
