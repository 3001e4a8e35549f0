"""State from outside: the same that the function has inside."""

from typing import Any

import pytest

from nova.store.db import Database
from tests.control.support import Control, problem

pytestmark = pytest.mark.anyio
PATH = "/functions/hello/state"


@pytest.fixture(autouse=True)
async def function(plane: Control) -> None:
    await plane.create()


async def put(plane: Control, key: str, value: Any, **more: Any) -> Any:
    return await plane.client.put(PATH, params={"key": key}, json={"value": value, **more})


async def test_a_key_is_set_read_and_deleted(plane: Control) -> None:
    created = await put(plane, "a/b %", {"n": [1, None, "ü"]}, ttl_s=60, expected_version=0)
    assert (created.status_code, created.json()["version"]) == (201, 1)
    assert created.json()["expires_at"] is not None
    conflict = problem(await put(plane, "a/b %", 1, expected_version=0), 409, "version_conflict")
    assert conflict["current_version"] == 1
    changed = await put(plane, "a/b %", 2, expected_version=1)
    assert (changed.status_code, changed.json()["expires_at"]) == (200, None)
    found = (await plane.client.get(PATH, params={"key": "a/b %"})).json()
    assert (found["value"], found["version"]) == (2, 2)
    wrong: dict[str, str | int] = {"key": "a/b %", "expected_version": 1}
    problem(await plane.client.delete(PATH, params=wrong), 409, "version_conflict")
    assert (await plane.client.delete(PATH, params={**wrong, "expected_version": 2})).status_code == 204
    problem(await plane.client.get(PATH, params={"key": "a/b %"}), 404, "not_found")
    problem(await plane.client.delete(PATH, params={"key": "a/b %"}), 404, "not_found")


async def test_keys_are_listed_by_prefix_and_paged(plane: Control) -> None:
    for key in ("u/1", "u/2", "u/3", "v"):
        await put(plane, key, "x")
    first = (await plane.client.get(PATH, params={"prefix": "u/", "limit": 2})).json()
    assert [(item["key"], item["size"]) for item in first["items"]] == [("u/1", 3), ("u/2", 3)]
    rest = (await plane.client.get(PATH, params={"prefix": "u/", "cursor": first["next_cursor"]})).json()
    assert ([item["key"] for item in rest["items"]], rest["next_cursor"]) == (["u/3"], None)
    assert (await plane.client.delete(PATH, params={"prefix": "u/"})).status_code == 204
    assert [item["key"] for item in (await plane.client.get(PATH)).json()["items"]] == ["v"]


async def test_counters_are_changed_in_one_step(plane: Control) -> None:
    async def add(**body: Any) -> Any:
        return await plane.client.post(f"{PATH}/increment", params={"key": "n"}, json=body)

    assert (await add()).json()["value"] == 1
    assert (await add(by=-5, ttl_s=60)).json()["value"] == -4
    await put(plane, "n", "text")
    problem(await add(), 409, "invalid_state")


async def test_what_cannot_be_is_refused(plane: Control, database: Database) -> None:
    problem(await put(plane, "k" * 513, 1), 400, "validation_failed")
    problem(await put(plane, "ü" * 300, 1), 400, "validation_failed")
    problem(await put(plane, "a\n", 1), 400, "validation_failed")
    problem(await put(plane, "k", "x" * (256 << 10)), 413, "payload_too_large")
    problem(await put(plane, "k", 1, ttl_s=0), 400, "validation_failed")
    problem(await plane.client.put(PATH, params={"key": "k"}, json={}), 400, "validation_failed")
    problem(await plane.client.get(PATH, params={"key": "k", "prefix": "k"}), 400, "validation_failed")
    problem(await plane.client.delete(PATH), 400, "validation_failed")
    problem(await plane.client.get("/functions/nobody/state"), 404, "not_found")
    await put(plane, "k", 1)
    await plane.client.delete("/functions/hello")
    assert await database.one("SELECT count(*) AS n FROM function_state") == {"n": 0}
