"""Aliases: what they may say, and that it reaches the store as it is routed."""

from typing import Any

import pytest

from nova.domain.identity import Scope
from tests.control.support import Control, fields, problem

pytestmark = pytest.mark.anyio
PATH = "/functions/hello/aliases"


@pytest.fixture(autouse=True)
async def three_versions(plane: Control) -> None:
    await plane.create()
    await plane.patch(timeout_s=2)
    await plane.patch(timeout_s=3)


async def split(plane: Control, name: str) -> tuple[tuple[int, int], ...]:
    function = await plane.functions.lookup(Scope(), "hello")
    assert function is not None
    return function.aliases[name].split


async def test_an_alias_names_a_version_or_splits(plane: Control) -> None:
    answer = await plane.client.post(PATH, json={"name": "prod", "version": 1, "description": "d"})
    assert answer.status_code == 201
    assert answer.headers["Location"].endswith(f"{PATH}/prod")
    created = answer.json()
    assert (created["version"], created["traffic_split"], created["description"]) == (1, None, "d")
    changed = await plane.client.patch(f"{PATH}/prod", json={"traffic_split": {"3": 33.33, "1": 66.67}})
    assert (changed.json()["version"], changed.json()["traffic_split"]) == (None, {"1": 66.67, "3": 33.33})
    assert changed.json()["description"] == "d"
    assert await split(plane, "prod") == ((1, 6667), (3, 3333))
    back = await plane.client.patch(f"{PATH}/prod", json={"version": 2, "description": None})
    assert (back.json()["version"], back.json()["description"]) == (2, "")
    assert (await plane.get("/functions/hello/versions/2"))["aliases"] == ["prod"]


async def test_an_alias_takes_sticky_values_and_rules_and_gives_them_back(plane: Control) -> None:
    rules = [
        {"by": "header", "name": "X-Beta", "value": "1", "version": 3},
        {"by": "query", "name": "beta", "value": "", "version": 2},
    ]
    sticky = {"by": "payload", "name": "/user/id"}
    body = {"name": "prod", "version": 1, "sticky": sticky, "match": rules}
    created = (await plane.client.post(PATH, json=body)).json()
    assert (created["sticky"], created["match"]) == (sticky, rules)
    function = await plane.functions.lookup(Scope(), "hello")
    assert function is not None
    assert function.aliases["prod"].versions == {1, 2, 3}
    problem(await plane.client.delete("/functions/hello/versions/3"), 409, "in_use")
    problem(
        await plane.client.patch(f"{PATH}/prod", json={"match": [{**rules[0], "version": 9}]}), 400, "validation_failed"
    )
    kept = (await plane.client.patch(f"{PATH}/prod", json={"version": 2})).json()
    assert (kept["sticky"], kept["match"]) == (sticky, rules)
    reset = (await plane.client.patch(f"{PATH}/prod", json={"sticky": None, "match": None})).json()
    assert (reset["sticky"], reset["match"]) == ({"by": "none", "name": ""}, [])


BAD: list[tuple[dict[str, Any], str]] = [
    ({"name": "x", "version": 1, "sticky": {"by": "weather"}}, "sticky.by"),
    ({"name": "x", "version": 1, "sticky": {"by": "cookie"}}, "sticky"),
    ({"name": "x", "version": 1, "match": [{"by": "header", "name": "a b", "value": "1", "version": 1}]}, "match.0"),
    ({"name": "x", "version": 1, "match": [{"by": "query", "name": "a", "value": "1", "version": 7}]}, "version"),
    ({"name": "x", "version": 1, "match": [{"by": "query", "name": "a", "value": "1"}] * 21}, "match"),
    ({"name": "live", "version": 1}, "name"),
    ({"name": "$LATEST", "version": 1}, "name"),
    ({"name": "1", "version": 1}, "name"),
    ({"name": "a b", "version": 1}, "name"),
    ({"name": "x"}, "version"),
    ({"name": "x", "version": 1, "traffic_split": {"1": 100}}, "version"),
    ({"name": "x", "version": 9}, "version"),
    ({"name": "x", "version": 0}, "version"),
    ({"name": "x", "traffic_split": {}}, "traffic_split"),
    ({"name": "x", "traffic_split": {"1": 50, "2": 49.99}}, "traffic_split"),
    ({"name": "x", "traffic_split": {"1": 100, "9": 0}}, "traffic_split.9"),
    ({"name": "x", "traffic_split": {"1": 33.333, "2": 66.667}}, "traffic_split.1"),
    ({"name": "x", "traffic_split": {"1": -1, "2": 101}}, "traffic_split.1"),
    ({"name": "x", "traffic_split": {"live": 100}}, "traffic_split.live"),
    ({"name": "x", "traffic_split": {"1": 50, "9": 50}}, "version"),
    ({"name": "x", "traffic_split": {"1": 90, **{str(version): 1 for version in range(2, 12)}}}, "traffic_split"),
]


async def test_bad_aliases_are_refused(plane: Control) -> None:
    for body, field in BAD:
        document = problem(await plane.client.post(PATH, json=body), 400, "validation_failed")
        assert any(name.startswith(field) for name in fields(document)), (body, document)
    assert (await plane.get(PATH))["items"] == []


async def test_patch_keeps_to_the_rules_of_create(plane: Control) -> None:
    """AP3: update validates as strictly as create."""
    await plane.client.post(PATH, json={"name": "prod", "version": 1})
    for body in (
        {"version": 9},
        {"version": None},
        {"traffic_split": {"1": 99}},
        {"version": 1, "traffic_split": {"1": 100}},
    ):
        problem(await plane.client.patch(f"{PATH}/prod", json=body), 400, "validation_failed")
    problem(await plane.client.patch(f"{PATH}/prod", json={"name": "x"}), 400, "unknown_field")
    problem(await plane.client.patch(f"{PATH}/none", json={"version": 1}), 404, "not_found")
    assert await split(plane, "prod") == ((1, 10_000),)


async def test_names_conflict_and_are_counted(plane: Control) -> None:
    for i in range(32):
        assert (await plane.client.post(PATH, json={"name": f"a{i:02}", "version": 1})).status_code == 201
    problem(await plane.client.post(PATH, json={"name": "one-more", "version": 1}), 409, "invalid_state")
    problem(await plane.client.post(PATH, json={"name": "a00", "version": 1}), 409, "already_exists")
    first = await plane.get(f"{PATH}?limit=20")
    rest = await plane.get(f"{PATH}?limit=20&cursor={first['next_cursor']}")
    names = [item["name"] for item in first["items"] + rest["items"]]
    assert names == [f"a{i:02}" for i in range(32)]


async def test_stale_changes_are_refused(plane: Control) -> None:
    """DB11: an alias that was changed meanwhile is not overwritten."""
    created = await plane.client.post(PATH, json={"name": "prod", "version": 1})
    match = {"If-Match": created.headers["ETag"]}
    assert (await plane.client.patch(f"{PATH}/prod", json={"version": 2}, headers=match)).status_code == 200
    problem(await plane.client.patch(f"{PATH}/prod", json={"version": 3}, headers=match), 412, "etag_mismatch")
    problem(await plane.client.delete(f"{PATH}/prod", headers=match), 412, "etag_mismatch")
    read = await plane.client.get(f"{PATH}/prod")
    assert read.json()["version"] == 2
    again = await plane.client.get(f"{PATH}/prod", headers={"If-None-Match": read.headers["ETag"]})
    assert again.status_code == 304


async def test_delete(plane: Control) -> None:
    await plane.client.post(PATH, json={"name": "prod", "version": 1})
    assert (await plane.client.delete(f"{PATH}/prod")).status_code == 204
    problem(await plane.client.delete(f"{PATH}/prod"), 404, "not_found")
    problem(await plane.client.get(f"{PATH}/prod"), 404, "not_found")
    problem(await plane.client.delete("/functions/none/aliases/prod"), 404, "not_found")
