"""orbit workflows, orbit runs, orbit approvals: the examples of the repository, run as their pages say."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from nova.cli import definitions, drawing
from tests.cli.conftest import Orbit
from tests.e2e.misuse import until
from tests.e2e.server import NovaServer

EXAMPLES = Path(__file__).parents[2] / "examples" / "workflows"
LINES = [{"sku": "mug", "count": 2, "price": 9.5}]
ORDER = {"order": "A-17", "card": "4242", "address": "Kiel", "lines": LINES}


class Example:
    """A folder of ``examples/workflows``, deployed and published."""

    def __init__(self, orbit: Orbit, folder: str, workflow: str) -> None:
        self._orbit = orbit
        self.workflow = workflow
        self.definition = EXAMPLES / folder / "workflow.yaml"
        self._functions = sorted((EXAMPLES / folder / "functions").iterdir())

    def __enter__(self) -> "Example":
        for function in self._functions:
            self._orbit("deploy", str(function)).ok()
        told = self._orbit("workflows", "publish", self.workflow, "-f", str(self.definition)).ok()
        assert f"{self.workflow} version 1 is active" in told.out
        return self

    def __exit__(self, *exc: object) -> None:
        self._orbit("workflows", "delete", self.workflow, "--cancel-runs", "--yes")
        for function in self._functions:
            self._orbit("delete", function.name, "--yes")

    def run(self, value: Any, *more: str, code: int = 0) -> Any:
        """The run at its end."""
        result = self._orbit(
            "workflows", "run", self.workflow, "--wait", "60", "-d", json.dumps(value), "-o", "json", *more
        )
        assert result.code == code, result.err
        return result.json


@pytest.fixture
def orbit(nova_up: NovaServer, orbit_alone: Orbit, monkeypatch: pytest.MonkeyPatch) -> Orbit:
    monkeypatch.setenv("ZENITH_URL", nova_up.url)
    return orbit_alone


def _said(orbit: Orbit, *arguments: str) -> str:
    return orbit(*arguments).ok().out.strip()


def test_the_order_saga_is_done_or_undone(orbit: Orbit) -> None:
    with Example(orbit, "order-saga", "order-saga") as saga:
        done = saga.run(ORDER)
        assert (done["status"], done["output"]) == ("succeeded", {"order": "A-17", "paid": 19.0, "parcel": "T-A-17"})
        watched = orbit("workflows", "run", "order-saga", "--watch", "-d", json.dumps({**ORDER, "address": "Moon"}))
        assert watched.code == 6
        assert "the run failed" in watched.err
        rows = {words[1]: words for line in watched.out.splitlines() if len(words := line.split()) > 2}
        assert rows["charge"][2:4] == ["function", "succeeded"]
        assert rows["charge"][-1] == rows["reserve"][-1] == "undone"
        assert rows["ship"][-2:] == ["Undeliverable:", "Moon"]
        run_id = orbit("runs", "list", "--workflow", "order-saga", "--status", "failed", "-o", "name").ok().out.strip()
        wide = orbit("runs", "get", run_id, "-o", "wide").ok().out
        assert "compensation" in wide
        told = orbit("runs", "tail", run_id).ok().out.splitlines()
        assert [line.split()[1:3] for line in told] == [
            ["run", "running"],
            *([key, status] for key in ("reserve", "charge") for status in ("running", "succeeded")),
            ["ship", "running"],
            ["ship", "failed"],
            ["charge", "undone"],
            ["reserve", "undone"],
            ["run", "failed"],
        ]
        declined = saga.run({**ORDER, "card": "4000"}, code=6)
        assert declined["error"]["type"] == "CardDeclined"
        again = orbit("runs", "retry", declined["id"], "--from", "start", "-d", json.dumps(ORDER), "--watch").ok()
        assert "succeeded" in again.out
        forked = (
            orbit("runs", "fork", declined["id"], "--from", "start", "-d", json.dumps(ORDER), "-o", "json").ok().json
        )
        assert forked["forked_from"] == declined["id"]


def test_the_image_pipeline_shows_each_item(orbit: Orbit, monkeypatch: pytest.MonkeyPatch) -> None:
    with Example(orbit, "image-pipeline", "image-pipeline") as pipeline:
        run = pipeline.run({"count": 6, "size": 8})
        assert run["output"]["sheet"] == {
            "names": [f"picture-{n}" for n in range(6)],
            "width": 24,
            "height": 4,
            "pixels": 96,
        }
        items = orbit("runs", "items", run["id"], "shrink", "-o", "json").ok().json["items"]
        assert [item["output"]["name"] for item in items] == run["output"]["sheet"]["names"]
        assert "6/6" in orbit("runs", "get", run["id"]).ok().out
        monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
        drawn = orbit("workflows", "run", "image-pipeline", "-d", '{"count": 6, "size": 8}', "--watch").ok().out
        looks = drawn.split("image-pipeline v1")[1:]
        assert len(looks) > 2, "it is drawn again while it runs"
        assert "succeeded" in looks[-1]


def test_a_person_approves(orbit: Orbit) -> None:
    expense = {"who": "ada", "amount": 120.0, "what": "a chair"}
    with Example(orbit, "human-approval", "expense") as example:
        assert example.run({**expense, "amount": 20.0})["output"]["pay"]["paid"] == 20.0
        for verb, data, said, output in (
            ("approve", {"cost_centre": "office"}, "approved", {"paid": 120.0, "to": "ada", "cost_centre": "office"}),
            ("reject", None, "rejected", {"paid": 0, "to": "ada"}),
        ):
            run_id = orbit("workflows", "run", "expense", "-d", json.dumps(expense), "-o", "name").ok().out.strip()
            listed = ("approvals", "list", "--run", run_id, "-o", "name")
            until(partial(_said, orbit, *listed), "somebody is asked")
            approval = _said(orbit, *listed)
            assert "Approve an expense" in orbit("approvals", "get", approval).ok().out
            answer = ("--comment", "fine", *(() if data is None else ("-d", json.dumps(data))))
            assert f"{said}: Approve an expense" in orbit("approvals", verb, approval, *answer).ok().out
            done = orbit("runs", "get", run_id, "--watch", "-o", "json").ok().json
            assert (done["status"], *done["output"].values()) == ("succeeded", output)
            assert orbit("approvals", verb, approval).code == 5, "it was answered"


def test_a_report_is_written_although_a_reading_failed(orbit: Orbit) -> None:
    with Example(orbit, "nightly-report", "nightly-report") as report:
        fired = {"data": {"scheduled_at": "2026-11-22T00:05:00Z"}}
        run = report.run(fired, "--run-id", "2026-11-22")
        assert run["output"]["text"].startswith("2026-11-22: ")
        again = report.run({}, "--run-id", "2026-11-22")
        assert again["id"] == run["id"], "one night, one run"
        definition = yaml.safe_load(report.definition.read_text())
        definition["nodes"][1]["input_mapping"] = {"day": None}
        orbit("workflows", "publish", "nightly-report", "-f", "-", stdin=json.dumps(definition).encode()).ok()
        assert "an unknown number of errors" in report.run(fired)["output"]["text"]
        told = orbit("workflows", "diff", "nightly-report", "1", "2").ok().out
        assert told.split() == ["~", "errors", "input_mapping"]
        assert "version 1 is active" in orbit("workflows", "activate", "nightly-report", "1").ok().out
        versions = orbit("workflows", "versions", "nightly-report", "-o", "json").ok().json["items"]
        assert [(version["version"], version["active"]) for version in versions] == [(2, False), (1, True)]
        assert "report-write" in orbit("workflows", "graph", "nightly-report").ok().out
        orbit("schedules", "create", "nightly-report", "5 0 * * *", "--workflow", "--name", "nightly").ok()
        tonight = orbit("schedules", "run", "nightly-report/nightly", "-o", "json").ok().json["run_id"]
        done = orbit("runs", "get", tonight, "--watch", "-o", "json").ok().json
        assert (done["status"], done["source"]) == ("succeeded", "schedule:nightly")
        assert "orders" in done["output"]["text"]


def test_a_workflow_is_changed_halted_and_steered(orbit: Orbit) -> None:
    nodes = [{"node_key": "go", "node_type": "wait_event", "key": "go"}, {"node_key": "then", "node_type": "pass"}]
    definition = {"nodes": nodes, "edges": [{"from": "go", "to": "then"}]}
    orbit("workflows", "create", "steered", "--tag", "team=shop", "--max-concurrent-runs", "2").ok()
    try:
        orbit("workflows", "publish", "steered", "-f", "-", stdin=json.dumps(definition).encode()).ok()
        orbit("workflows", "update", "steered", "--description", "by hand", "--unset", "max_concurrent_runs").ok()
        shown = orbit("workflows", "get", "steered", "-o", "json").ok().json
        assert (shown["description"], shown["tags"], shown["max_concurrent_runs"]) == ("by hand", {"team": "shop"}, 0)
        assert "by hand" in orbit("workflows", "list", "--search", "STEER").ok().out
        run_id = orbit("workflows", "run", "steered", "-o", "name").ok().out.strip()
        orbit("runs", "pause", run_id).ok()
        orbit("runs", "send", run_id, "go", "-d", "[1]").ok()
        orbit("runs", "resume", run_id).ok()
        done = orbit("runs", "get", run_id, "--watch", "-o", "json").ok().json
        assert (done["status"], done["output"]) == ("succeeded", {"then": [1]})
        other = orbit("workflows", "run", "steered", "-o", "name").ok().out.strip()
        assert other in orbit("runs", "cancel", other, "--reason", "enough").ok().out
        assert "halted" in orbit("workflows", "halt", "steered").ok().out
        assert orbit("workflows", "run", "steered").code == 4
        orbit("workflows", "resume", "steered").ok()
        assert orbit("runs", "get", "nothing").code == 3
        assert orbit("workflows", "run", "steered", "-d", "{").code == 2
        assert orbit("workflows", "update", "steered").code == 2
        bad = orbit("workflows", "validate", "-f", "-", stdin=b"{nodes: [{node_key: a, node_type: function}]}")
        assert bad.code == 1
        assert "nodes[0].function_name" in bad.err
    finally:
        orbit("workflows", "delete", "steered", "--cancel-runs", "--yes").ok()


def test_a_definition_is_drawn_as_it_is_written(orbit_alone: Orbit, tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(
        """
        nodes:
          - {node_key: big, node_type: choice, branches: [{when: {path: $.input.n, op: gt, value: 9}, goto: ask}], default: pay}
          - {node_key: ask, node_type: wait_event, approval: {title: May I}}
          - {node_key: pay, node_type: function, function_name: p, join: any, catch: [{on: [Declined], goto: sorry}]}
          - {node_key: each, node_type: map, items: $.input.l, do: {node_type: function, function_name: e}}
          - {node_key: later, node_type: wait, until: 2026-12-24T18:00:00Z}
          - {node_key: sorry, node_type: fail, error: No}
        edges: [{from: ask, to: pay}, {from: pay, to: each}, {from: each, to: later}]
        """
    )
    read = definitions.read_definition(str(file))
    assert read["nodes"][2]["catch"] == [{"on": ["Declined"], "goto": "sorry"}], "on is a name here"
    assert read["nodes"][4]["until"] == "2026-12-24T18:00:00Z", "and a time is text"
    drawn = [line.strip(" │├└─") for line in orbit_alone("workflows", "graph", "-f", str(file)).ok().out.splitlines()]
    assert drawn[1:] == [
        "big  choice",
        "ask  approval  $.input.n gt 9",
        "pay  function p  after any of ask, big",
        "each  map $.input.l, 10 at a time",
        "each item",
        "do  function e",
        "later  wait 2026-12-24T18:00:00Z",
        "sorry  fail  on Declined",
        "pay  see above",
    ]
    chart = orbit_alone("workflows", "graph", "-f", str(file), "--mermaid").ok().out
    assert chart.startswith("flowchart TD\n")
    assert '  n_big -- "otherwise" --> n_pay' in chart
    assert orbit_alone("workflows", "graph").code == 2
    file.write_text("{nodes: [{}]}")
    assert "orbit workflows validate" in orbit_alone("workflows", "graph", "-f", str(file)).err
    file.write_text("{nodes: [}")
    assert orbit_alone("workflows", "graph", "-f", str(file)).code == 2


def test_durations_are_readable() -> None:
    assert [drawing.duration(ms) for ms in (0.4, 850, 2500, 200_000, 7_380_000)] == [
        "0 ms",
        "850 ms",
        "2.5 s",
        "3 min 20 s",
        "2 h 3 min",
    ]
