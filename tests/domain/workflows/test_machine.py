"""The machine alone: whatever the order in which calls end, and wherever it is made again from what was written, the outcome
is the same.
"""

import copy
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nova.domain.workflows.definition import Definition, parse
from nova.domain.workflows.machine import Machine
from nova.domain.workflows.state import Call, CallEnd, Ended, Facts, Failure, NodeState, Ref

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def function(key: str, name: str = "echo", **more: Any) -> dict[str, Any]:
    return {"node_key": key, "node_type": "function", "function_name": name, **more}


EACH = {"node_type": "function", "function_name": "echo", "input_mapping": {"i": "$.index", "of": "$.item"}}
STORY = {
    "nodes": [
        function("a"),
        function("b", input_mapping={"b": "$.input.n"}),
        function("bad", "bad", catch=[{"on": ["ValueError"], "goto": "saved"}]),
        function("saved", input_mapping={"why": "$.error.message"}),
        function("unsaved"),
        {"node_key": "m", "node_type": "map", "items": "$.input.list", "do": EACH, "max_concurrency": 2},
        {
            "node_key": "p",
            "node_type": "parallel",
            "branches": [
                {"nodes": [function("x"), function("y")], "edges": [{"from": "x", "to": "y"}]},
                {"nodes": [function("x", "bad", continue_on_error=True), function("z")], "output": [1, "$.input.n"]},
            ],
        },
        {
            "node_key": "c",
            "node_type": "choice",
            "branches": [{"when": {"path": "$.nodes.a.output.n", "op": "eq", "value": 3}, "goto": "three"}],
            "default": "other",
        },
        function("three"),
        function("other"),
        function("join"),
    ],
    "edges": [
        *({"from": "a", "to": to} for to in ("b", "bad", "m", "p", "c")),
        {"from": "bad", "to": "unsaved"},
        *({"from": source, "to": "join"} for source in ("b", "saved", "unsaved", "m", "p", "three", "other")),
    ],
}
GIVEN = {"n": 3, "list": [10, 20, 30, 40, 50]}


def facts(**more: Any) -> Facts:
    known: dict[str, Any] = {
        "run_id": "r",
        "workflow": "w",
        "version": 1,
        "key": None,
        "generation": 1,
        "depth": 0,
        "input": json.dumps(GIVEN).encode(),
        "deadline_at": NOW + timedelta(days=1),
        "cancel_on_failure": True,
        "max_items": 1_000_000,
        "max_depth": 16,
    }
    return Facts(**(known | more))


def echo(call: Call) -> CallEnd:
    if call.function == "bad":
        return CallEnd("q", NOW, 1.0, error=Failure("ValueError", "no"))
    return CallEnd("q", NOW, 1.0, output=call.payload)


class Driver:
    """Does what a machine wants in an order by chance, and makes it again from what it had written with ``dying``."""

    def __init__(self, definition: Definition, known: Facts, chance: random.Random, dying: float) -> None:
        self.definition, self.facts, self.chance, self.dying = definition, known, chance, dying
        self.rows: dict[tuple[str, int], NodeState] = {}
        self.finished: list[tuple[Ref, str]] = []
        self.called: list[str] = []

    def run(self, answer: Callable[[Call], CallEnd] = echo) -> Ended:
        machine, waiting = self.made("running", None), list[Call]()
        while True:
            step = machine.take()
            for ref in step.changed:
                state = machine.board.state(ref)
                path = self.definition.nodes[ref[0]].path
                before = self.rows.get((path, ref[1]))
                assert before is None or not before.ended or before.compensation != state.compensation
                self.rows[path, ref[1]] = copy.deepcopy(state)
            if machine.ended is not None:
                return machine.ended
            waiting = [call for call in waiting if call.ref not in step.cancelled_calls] + step.calls
            if self.chance.random() < self.dying:
                machine, waiting = self.made(machine.status, machine.ending), []
                continue
            call = waiting.pop(self.chance.randrange(len(waiting)))
            self.called.append(call.function)
            machine.call_ended(call.ref, call.purpose, answer(call), NOW)

    def made(self, status: str, ending: Any) -> Machine:
        machine = Machine(self.definition, self.facts)
        rows = []
        for (path, item), state in self.rows.items():
            fresh = copy.deepcopy(state)
            fresh.open, fresh.active, fresh.given = 0, [], None
            rows.append((path, item, fresh))
        machine.begin(rows, status, ending, NOW)
        return machine


def test_the_output_is_the_same_in_every_order_and_after_every_death() -> None:
    """EV15: also when the process dies in between, at any moment."""
    definition = parse(STORY)
    outcomes = set()
    for seed in range(150):
        ended = Driver(definition, facts(), random.Random(seed), dying=0.2 if seed % 2 else 0).run()
        assert ended.status == "succeeded", ended.error
        outcomes.add(ended.output)
    assert len(outcomes) == 1
    joined = json.loads(outcomes.pop() or b"")["join"]
    assert set(joined) == {"b", "saved", "m", "p", "three"}
    assert joined["saved"] == {"why": "no"}
    assert joined["m"] == [{"i": i, "of": of} for i, of in enumerate(GIVEN["list"])]  # type: ignore[arg-type]
    assert joined["p"] == [{"y": GIVEN}, [1, 3]]


@pytest.mark.parametrize("cancel", [True, False])
def test_what_was_done_is_undone_in_every_order_and_after_every_death(cancel: bool) -> None:
    undo = {"compensate": {"function_name": "undo"}}
    nodes = [function(f"n{number}", **undo) for number in range(5)] + [function("bad", "bad"), function("after")]
    edges = [{"from": "n0", "to": "n1"}, {"from": "n1", "to": "bad"}, {"from": "bad", "to": "after"}]
    definition = parse({"nodes": nodes, "edges": edges})
    for seed in range(60):
        dying = 0.2 if seed % 2 else 0
        driver = Driver(definition, facts(cancel_on_failure=cancel), random.Random(seed), dying)
        ended = driver.run()
        assert (ended.status, ended.error and ended.error.path) == ("failed", "bad")
        for (path, _), row in driver.rows.items():
            done = row.status == "succeeded" and path != "bad"
            assert row.compensation == ("succeeded" if done else None), path
        assert driver.rows["after", -1].status == "skipped"
        if not cancel and not dying:
            assert driver.called.count("undo") == sum(row.status == "succeeded" for row in driver.rows.values())


def test_large_runs_take_time_in_proportion() -> None:
    """10,000 nodes in a chain, and a map over 30,000 items."""
    nodes = [function(f"n{number}") for number in range(10_000)]
    edges = [{"from": f"n{number}", "to": f"n{number + 1}"} for number in range(9_999)]
    machine = Machine(parse({"nodes": nodes, "edges": edges}, max_nodes=10_000), facts())
    assert _driven(machine) == "succeeded"
    mapped = {"node_key": "m", "node_type": "map", "items": "$.input", "do": EACH | {"input_mapping": None}}
    known = facts(input=json.dumps(list(range(30_000))).encode())
    machine = Machine(parse({"nodes": [mapped]}), known)
    assert _driven(machine) == "succeeded"
    assert machine.ended is not None
    assert json.loads(machine.ended.output or b"")["m"] == list(range(30_000))


def _driven(machine: Machine) -> str:
    machine.begin([], "running", None, NOW)
    while machine.ended is None:
        for call in machine.take().calls:
            machine.call_ended(call.ref, call.purpose, echo(call), NOW)
    return machine.ended.status
