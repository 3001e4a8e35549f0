"""Definitions: every problem is told at once, by the field it is in; and limits are named."""

from typing import Any

import pytest

from nova.domain.workflows.definition import parse
from nova.errors import NovaError


def function(key: str, **more: Any) -> dict[str, Any]:
    return {"node_key": key, "node_type": "function", "function_name": "f", **more}


def problems(document: Any, **limits: int) -> dict[str, str]:
    with pytest.raises(NovaError) as refused:
        parse(document, **limits)
    assert refused.value.code == "validation_failed"
    return {error.field: error.message for error in refused.value.errors}


def test_every_field_that_is_wrong_is_named() -> None:
    nodes = [
        function("a", typo=1, retry_policy={"max_attempts": 0}, timeout_s=901),
        {"node_key": "b", "node_type": "bogus"},
        {"node_key": "c d", "node_type": "pass"},
        {"node_key": "m", "node_type": "map", "items": [], "do": {"node_type": "function"}},
        {"node_key": "p", "node_type": "parallel", "branches": [{"nodes": [{"node_key": "x", "node_type": "wait_"}]}]},
    ]
    found = problems({"nodes": nodes, "edges": [{"from": "a"}], "extra": 1})
    assert set(found) == {
        "nodes[0].typo",
        "nodes[0].retry_policy.max_attempts",
        "nodes[0].timeout_s",
        "nodes[1]",
        "nodes[2].node_key",
        "nodes[3].do.function_name",
        "nodes[4].branches[0].nodes[0]",
        "edges[0].to",
        "extra",
    }


@pytest.mark.parametrize("document", [None, [], "x", {}, {"nodes": []}, {"nodes": {}}, {"nodes": [1]}])
def test_what_is_no_definition_is_refused(document: Any) -> None:
    assert problems(document)


def test_what_nodes_are_to_one_another_is_checked() -> None:
    nodes = [
        function("a"),
        function("a"),
        function("b", catch=[{"goto": "nowhere"}], qualifier="!"),
        {"node_key": "c", "node_type": "choice", "branches": [{"when": {"path": "x", "op": "eq"}, "goto": "z"}]},
        {"node_key": "end", "node_type": "succeed"},
        {"node_key": "w", "node_type": "wait"},
        {"node_key": "e", "node_type": "wait_event"},
        {
            "node_key": "p",
            "node_type": "parallel",
            "complete": 2,
            "branches": [{"nodes": [function("q")], "edges": [{"from": "q", "to": "a"}]}],
        },
        {"node_key": "m", "node_type": "map", "items": "text", "do": function("x") | {"node_key": "x"}},
    ]
    nodes[-1]["do"].pop("node_key")
    late = [{"exact": {"/a": 7}}, {"like": {"/a": "$.input.a"}}, {"prefix": {"/b": "$.nodes.none.output"}}]
    nodes += [
        {"node_key": "two", "node_type": "wait_event", "key": "k", "topic": "t"},
        {"node_key": "f", "node_type": "wait_event", "key": "k", "filters": [{"exact": {"/a": "$.input.a"}}]},
        {"node_key": "bad", "node_type": "wait_event", "topic": "t", "filters": late},
    ]
    found = problems({"nodes": nodes, "edges": [{"from": "end", "to": "a"}, {"from": "no", "to": "b"}]})
    assert {
        "nodes[1].node_key",
        "nodes[2].catch[0].goto",
        "nodes[2].qualifier",
        "nodes[3].branches[0].goto",
        "nodes[3].branches[0].when.path",
        "nodes[3].branches[0].when.value",
        "nodes[5].seconds",
        "nodes[6].key",
        "nodes[7].complete",
        "nodes[7].branches[0].edges[0].to",
        "nodes[8].items",
        "nodes[9].key",
        "nodes[10].filters",
        "nodes[11].filters[0].exact./a",
        "nodes[11].filters[1].like",
        "nodes[11].filters[2].prefix./b",
        "edges[0].from",
        "edges[1].from",
    } <= set(found)


def test_cycles_through_edges_choices_and_catches_are_refused() -> None:
    back = {
        "node_key": "c",
        "node_type": "choice",
        "branches": [{"when": {"path": "$.input", "op": "exists"}, "goto": "a"}],
    }
    assert "cycle" in problems({"nodes": [function("a"), back], "edges": [{"from": "a", "to": "c"}]})["edges"]
    caught = [function("a"), function("b", catch=[{"goto": "a"}])]
    assert "cycle" in problems({"nodes": caught, "edges": [{"from": "a", "to": "b"}]})["edges"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("$.nodes.later.output", "does not come before"),
        ("$.nodes.me.output", "does not come before"),
        ("$.nodes.none.output", "names no node"),
        ("$.nodes.*", "names no node"),
        ("$..x", "starts with none of"),
        ("$.item", "starts with none of"),
        ("$.input[", "no JSONPath"),
        ("$.input..a..b", "descends twice"),
        ("$.input[?@.x == $.nodes.later.output]", "$ stands at the beginning only"),
        ("$.input." + "a" * 1024, "1024 characters"),
    ],
)
def test_paths_look_only_at_what_is_there_by_then(path: str, says: str) -> None:
    """So the output never depends on which node was done first."""
    nodes = [function("me", input_mapping={"deep": [1, path]}), function("later")]
    found = problems({"nodes": nodes, "edges": [{"from": "me", "to": "later"}]})
    assert says in found["nodes[0].input_mapping.deep[1]"]


def test_the_limit_of_nodes_counts_those_inside_and_is_named() -> None:
    branch = {"nodes": [function(f"n{number}") for number in range(5)]}
    document = {"nodes": [{"node_key": "p", "node_type": "parallel", "branches": [branch, branch]}]}
    assert len(parse(document, max_nodes=11).nodes) == 11
    assert "limits.workflow_nodes" in problems(document, max_nodes=10)["nodes"]


def test_nesting_has_a_limit() -> None:
    document: Any = {"nodes": [function("x")]}
    for _ in range(10):
        document = {"nodes": [{"node_key": "p", "node_type": "parallel", "branches": [document]}]}
    assert any("nested deeper" in message for message in problems(document).values())


def test_what_it_would_call_is_known() -> None:
    sub = {"node_type": "sub_workflow", "workflow_name": "w", "version": 2}
    document = {
        "nodes": [
            function("a", qualifier="live", compensate={"function_name": "undo"}),
            {"node_key": "m", "node_type": "map", "items": [], "do": sub},
            {"node_key": "n", "node_type": "wait_event", "topic": "a.b", "filters": [{"exact": {"/a": "$.input.a"}}]},
        ]
    }
    found = parse(document)
    assert found.topics == {"a.b"}
    assert found.functions == {("f", "live"), ("undo", None)}
    assert found.workflows == {("w", 2)}
