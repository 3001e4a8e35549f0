"""Pointers into documents, and where two of them differ."""

from typing import Any

import pytest

from nova.domain.documents import ABSENT, MAX_DIFFERENCES, Difference, differences, find, within

DOCUMENT: Any = {"a": [{"b": None}, 2], "x/y": {"m~n": True}, "": 0}


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        ("", DOCUMENT),
        ("/a/0/b", None),
        ("/a/1", 2),
        ("/x~1y/m~0n", True),
        ("/", 0),
        ("/a/2", ABSENT),
        ("/a/-1", ABSENT),
        ("/a/x", ABSENT),
        ("/a/1/b", ABSENT),
        ("/none", ABSENT),
    ],
)
def test_a_pointer_finds_what_it_names(pointer: str, found: Any) -> None:
    assert find(DOCUMENT, pointer) is found or find(DOCUMENT, pointer) == found


def test_differences_have_places_and_both_sides() -> None:
    before = {"same": [1, {"k": "v"}], "n": 1, "gone": None, "list": [1, 2, 3], "kind": {"a": 1}}
    after = {"list": [1, 9], "same": [1.0, {"k": "v"}], "n": True, "kind": [1], "x/y": 0}
    assert differences(before, after) == [
        Difference("/n", 1, True),
        Difference("/gone", None, ABSENT),
        Difference("/list/1", 2, 9),
        Difference("/list/2", 3, ABSENT),
        Difference("/kind", {"a": 1}, [1]),
        Difference("/x~1y", ABSENT, 0),
    ]
    assert differences(before, before) == []
    assert differences(None, ABSENT) == [Difference("", None, ABSENT)]


def test_what_is_ignored_is_not_looked_at() -> None:
    before, after = {"at": 1, "user": {"id": 1, "n": 2}, "a~b": 1}, {"at": 2, "user": {"id": 9, "n": 3}, "a~b": 2}
    assert [found.path for found in differences(before, after, ignore=("/at", "/a~0b"))] == ["/user/id", "/user/n"]
    assert differences(before, after, ignore=("/at", "/user", "/a~0b")) == []
    assert differences(1, 2, ignore=("",)) == []


def test_a_comparison_is_bounded() -> None:
    assert len(differences(list(range(10_000)), [])) == MAX_DIFFERENCES
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    assert differences(deep, deep) == []
    assert within([[[1]], {"a": []}], 3)
    assert not within([[[1]], {"a": []}], 2)
    assert not within(deep, 100)
