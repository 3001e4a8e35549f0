"""Volumes over the API: what there is, who mounts it, and what is refused."""

from typing import Any

import httpx
import pytest

from nova.store.db import Database
from tests.control.support import HELLO, Control, control, fields, problem

pytestmark = pytest.mark.anyio


async def create(plane: Control, name: str = "data", size_mb: int = 16, **members: Any) -> httpx.Response:
    return await plane.client.post("/volumes", json={"name": name, "size_mb": size_mb, **members})


async def mount(plane: Control, *mounts: dict[str, Any], **more: Any) -> httpx.Response:
    return await plane.client.put("/functions/hello/mounts", json={"mounts": list(mounts), **more})


def at(volume: str, path: str = "/mnt/data", **more: Any) -> dict[str, Any]:
    return {"volume": volume, "path": path, **more}


async def test_a_volume_is_created_grows_and_is_described(plane: Control) -> None:
    made = await create(plane, shared=True, description="for all")
    assert made.status_code == 201, made.text
    shown = made.json()
    assert (shown["size_mb"], shown["shared"], shown["description"]) == (16, True, "for all")
    assert (shown["node"], shown["used_mb"], shown["mounted_by"]) == (None, 0, [])
    problem(await create(plane), 409, "already_exists")
    grown = await plane.client.patch("/volumes/data", json={"size_mb": 32})
    assert (grown.json()["size_mb"], grown.json()["description"]) == (32, "for all")
    smaller = problem(await plane.client.patch("/volumes/data", json={"size_mb": 16}), 400, "validation_failed")
    assert fields(smaller) == ["size_mb"]
    described = await plane.client.patch("/volumes/data", json={"description": "less"})
    assert (described.json()["size_mb"], described.json()["description"]) == (32, "less")
    await create(plane, "archive")
    page = await plane.get("/volumes?limit=1")
    rest = await plane.get(f"/volumes?cursor={page['next_cursor']}")
    assert [item["name"] for item in (*page["items"], *rest["items"])] == ["archive", "data"]
    assert (await plane.get("/volumes/archive"))["shared"] is False
    for size in (0, 10241):
        assert fields(problem(await create(plane, "x", size), 400, "validation_failed")) == ["size_mb"]
    problem(await plane.client.patch("/volumes/data", json={"shared": False}), 400, "unknown_field")
    problem(await plane.client.get("/volumes/nothing"), 404, "not_found")


async def test_a_function_mounts_volumes_by_a_version_of_its_own(plane: Control) -> None:
    await plane.create()
    await create(plane)
    await create(plane, "more")
    answer = await mount(plane, at("data"), at("more", "/mnt/more", read_only=True))
    assert answer.status_code == 200, answer.text
    expected = [
        {"volume": "data", "path": "/mnt/data", "read_only": False},
        {"volume": "more", "path": "/mnt/more", "read_only": True},
    ]
    assert answer.json() == {"version": 2, "mounts": expected}
    await plane.patch(memory_mb=256)
    function = await plane.get("/functions/hello")
    assert (function["version"], function["mounts"]) == (3, expected), "other changes leave them"
    assert (await plane.get("/volumes/data"))["mounted_by"] == ["hello"]
    held = problem(await plane.client.delete("/volumes/data"), 409, "in_use")
    assert held["references"] == ["function:hello"]
    only = await mount(plane, deploy="publish")
    assert only.json() == {"version": 4, "mounts": []}
    assert (await plane.get("/functions/hello"))["version"] == 3
    assert (await plane.get("/functions/hello/mounts"))["mounts"] == []
    problem(await plane.client.delete("/volumes/data"), 409, "in_use")
    await plane.client.delete("/functions/hello")
    assert (await plane.client.delete("/volumes/data")).status_code == 204
    problem(await plane.client.delete("/volumes/data"), 404, "not_found")


async def test_what_cannot_be_mounted_is_refused_by_name(plane: Control) -> None:
    """BE6: at deploy."""
    await plane.create()
    await create(plane)
    for path in ("/data", "/mnt", "/mnt/", "/mnt/a/b", "/mnt/..", "/mnt/.hidden", "/code/x", "mnt/x", "/mnt/a\nb"):
        refused = problem(await mount(plane, at("data", path)), 400, "validation_failed")
        assert fields(refused) == ["mounts.0.path"], path
    assert fields(problem(await mount(plane, at("nothing")), 400, "validation_failed")) == ["mounts.0.volume"]
    twice = problem(await mount(plane, at("data"), at("data", "/mnt/b")), 400, "validation_failed")
    assert fields(twice) == ["mounts.1.volume"]
    await create(plane, "more")
    twice = problem(await mount(plane, at("data"), at("more")), 400, "validation_failed")
    assert fields(twice) == ["mounts.1.path"]
    many = [at("data", f"/mnt/{number}") for number in range(9)]
    assert fields(problem(await mount(plane, *many), 400, "validation_failed")) == ["mounts"]
    plane.backends.refuse.add("mounts")
    assert fields(problem(await mount(plane, at("data")), 422, "unsupported")) == ["mounts"]
    assert (await plane.get("/functions/hello"))["version"] == 1


async def test_a_volume_belongs_to_its_namespace(database: Database) -> None:
    """BE14: other namespaces neither see nor mount it."""
    await database.run("INSERT INTO namespaces (tenant_id, name, description) VALUES ('default', 'other', '')")
    async with control(database) as plane:
        await create(plane)
        there = {"X-Nova-Namespace": "other"}
        problem(await plane.client.get("/volumes/data", headers=there), 404, "not_found")
        function = {"name": "hello", "runtime": "python", "code": HELLO}
        assert (await plane.client.post("/functions", json=function, headers=there)).status_code == 201
        body = {"mounts": [at("data")]}
        refused = await plane.client.put("/functions/hello/mounts", json=body, headers=there)
        assert fields(problem(refused, 400, "validation_failed")) == ["mounts.0.volume"]
