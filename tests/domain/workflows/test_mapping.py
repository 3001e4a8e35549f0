"""Mappings and conditions: what values they make, and what they cost at most."""

import time
from typing import Any

import pytest

from nova.domain.workflows.mapping import MappingFailed, condition, mapping, problems_of

CONTEXT = {"input": {"n": 5, "text": "abc", "list": [1, 2, {"x": "y"}], "no": None, "yes": True}, "nodes": {}}


def test_literals_paths_and_the_escape() -> None:
    document = {
        "lit": "text",
        "path": "$.input.n",
        "escaped": "$$.input.n",
        "deep": [{"all": "$.input.list[*].x"}],
        "one": "$",
    }
    assert mapping(document)(CONTEXT) == {
        "lit": "text",
        "path": 5,
        "escaped": "$.input.n",
        "deep": [{"all": ["y"]}],
        "one": "$",
    }
    assert mapping("$.input.no")(CONTEXT) is None
    assert mapping("$.input.list[-1].x")(CONTEXT) == "y"
    assert mapping("$.input.list[?@ == 9]")(CONTEXT) == []
    with pytest.raises(MappingFailed, match=r"\$.input.none selects nothing"):
        mapping({"x": "$.input.none"})(CONTEXT)


@pytest.mark.parametrize(
    ("path", "op", "value", "holds"),
    [
        ("$.input.n", "eq", 5, True),
        ("$.input.n", "eq", 5.0, True),
        ("$.input.yes", "eq", 1, False),
        ("$.input.none", "eq", None, False),
        ("$.input.no", "eq", None, True),
        ("$.input.none", "ne", 1, True),
        ("$.input.n", "gt", 4, True),
        ("$.input.n", "gt", "4", False),
        ("$.input.text", "lt", "abd", True),
        ("$.input.yes", "ge", 0, False),
        ("$.input.n", "in", [1, 5], True),
        ("$.input.list", "contains", 2, True),
        ("$.input.text", "contains", "bc", True),
        ("$.input", "contains", "text", True),
        ("$.input.none", "exists", False, True),
        ("$.input.no", "exists", True, True),
        ("$.input.list[?@ == 9]", "exists", True, False),
        ("$.input.text", "matches", "^a.c$", True),
        ("$.input.n", "matches", "5", False),
        ("$.input.n", "eq", "$.input.list[0]", False),
    ],
)
def test_what_conditions_say(path: str, op: str, value: Any, holds: bool) -> None:
    assert condition({"path": path, "op": op, "value": value})(CONTEXT) is holds
    assert condition({"not": {"path": path, "op": op, "value": value}})(CONTEXT) is not holds


def test_conditions_combine() -> None:
    yes, no = {"path": "$.input.n", "op": "exists"}, {"path": "$.input.z", "op": "exists"}
    assert condition({"all": [yes, {"any": [no, yes]}, {"not": no}]})(CONTEXT)
    assert not condition({"any": [no, {"all": [yes, no]}]})(CONTEXT)


def test_what_is_wrong_with_a_condition_is_named() -> None:
    deep: Any = {"path": "$.input", "op": "exists"}
    for _ in range(40):
        deep = {"not": deep}
    assert problems_of(deep, "when")
    found = dict(problems_of({"all": [{"path": "x", "op": "is"}, 5], "any": []}, "when"))
    assert set(found) == {"when.any", "when.all[0].path", "when.all[0].op", "when.all[1]"}
    assert dict(problems_of({"path": "$.input", "op": "matches", "value": "("}, "w"))["w.value"]


@pytest.mark.parametrize(
    "document",
    [
        {"path": "$.input.text", "op": "matches", "value": "(a|aa)+$"},
        {"path": "$.input.list[?search(@, '(a|aa)+c')]", "op": "exists"},
    ],
)
def test_an_expression_that_would_take_for_ever_is_cut_short(document: Any) -> None:
    text = "a" * 200 + "b"
    began = time.monotonic()
    assert condition(document)({"input": {"text": text, "list": [text]}}) is False
    assert time.monotonic() - began < 5
