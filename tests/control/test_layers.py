"""Layers over the API: published once, mounted by versions of functions, kept while they are."""

import base64
import stat
import tarfile
from typing import Any

import httpx
import pytest

from nova.store.db import Database
from tests.control.support import HELLO, Control, control, fields, problem, tar_member, tar_of, zip_of

pytestmark = pytest.mark.anyio


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def publish(plane: Control, name: str = "deps", files: Any = None, **members: Any) -> httpx.Response:
    files = files or {"python/greeting.py": encoded("TEXT = 'hello'")}
    return await plane.client.post("/layers", json={"name": name, "files": files, **members})


async def upload(plane: Control, archive: bytes, **meta: Any) -> httpx.Response:
    data = {"meta": httpx.Request("POST", "http://x", json={"name": "deps", **meta}).content.decode()}
    return await plane.client.post("/layers", files={"archive": ("a.bin", archive)}, data=data)


async def mount(plane: Control, *layers: str, **more: Any) -> httpx.Response:
    return await plane.client.put("/functions/hello/layers", json={"layers": list(layers), **more})


async def test_a_layer_is_published_once_for_each_content(plane: Control) -> None:
    """BU9: the same files under two names are two layers, and no answer tells where they lie."""
    first = await publish(plane, runtimes=["python"], description="what we all need")
    assert first.status_code == 201, first.text
    assert first.headers["location"] == "/layers/deps/versions/1"
    shown = first.json()
    assert (shown["version"], shown["files"], shown["size"]) == (1, 1, len("TEXT = 'hello'"))
    assert (shown["runtimes"], shown["description"]) == (["python"], "what we all need")
    again = await publish(plane, runtimes=["python"])
    assert (again.status_code, again.json()) == (200, shown)
    other = await publish(plane, files={"bin/tool": {"base64": encoded("#!/bin/sh"), "executable": True}})
    assert (other.status_code, other.json()["version"]) == (201, 2)
    copy = await publish(plane, "copy")
    assert copy.json()["digest"] == shown["digest"], "the same files, under a name of their own"
    whole = await plane.get("/layers/deps")
    assert (whole["version"], whole["versions"]) == (2, [2, 1])
    assert await plane.get("/layers/deps/versions/1") == shown
    page = await plane.get("/layers?limit=1")
    assert [item["name"] for item in page["items"]] == ["copy"]
    rest = await plane.get(f"/layers?cursor={page['next_cursor']}")
    assert [(item["name"], item["version"]) for item in rest["items"]] == [("deps", 2)]
    for missing in ("/layers/nothing", "/layers/deps/versions/3", "/layers/deps/versions/x"):
        problem(await plane.client.get(missing), 404, "not_found")


async def test_an_archive_is_a_layer_too(plane: Control) -> None:
    archive = zip_of({"bin/tool": "#!/bin/sh"}, modes={"bin/tool": stat.S_IFREG | 0o755})
    answer = await upload(plane, archive)
    assert answer.status_code == 201, answer.text
    same = await publish(plane, files={"bin/tool": {"base64": encoded("#!/bin/sh"), "executable": True}})
    assert (same.status_code, same.json()["digest"]) == (200, answer.json()["digest"])
    plain = await publish(plane, files={"bin/tool": encoded("#!/bin/sh")})
    assert plain.status_code == 201, "what may be executed is another content"


@pytest.mark.parametrize(
    "member",
    [
        tar_member("/etc/passwd"),
        tar_member("a/../../b"),
        tar_member("device", tarfile.CHRTYPE),
        tar_member("pipe", tarfile.FIFOTYPE),
        tar_member("out", tarfile.SYMTYPE, link="../../etc"),
        tar_member("absolute", tarfile.SYMTYPE, link="/etc/passwd"),
        tar_member("line\nbreak"),
    ],
    ids=lambda member: member.name.replace("\n", " ").replace("/", " "),
)
async def test_an_archive_that_attacks_is_refused(plane: Control, member: tarfile.TarInfo) -> None:
    """BE8: an archive that leads out, or holds what is no file, becomes no layer."""
    problem(await upload(plane, tar_of((member, b"x"))), 400, "validation_failed")
    problem(await plane.client.get("/layers/deps"), 404, "not_found")


async def test_what_is_no_layer_is_refused_by_name(plane: Control) -> None:
    """BU7: a small archive that unpacks to too much is refused."""
    assert "limits" not in (await publish(plane)).json()
    problem(await publish(plane, "bad name"), 400, "validation_failed")
    for body in ({"name": "deps"}, {"name": "deps", "files": {}}):
        problem(await plane.client.post("/layers", json=body), 400, "validation_failed")
    assert fields(problem(await publish(plane, runtimes=["cobol"]), 400, "validation_failed")) == ["runtimes.0"]
    found = problem(await publish(plane, files={"a.py": "not base64!"}), 400, "validation_failed")
    assert fields(found) == ["files.a.py"]
    plane.settings.limits.unpacked_mb = 1
    bomb = zip_of({"zeros": b"\0" * (3 << 20)})
    assert len(bomb) < 1 << 16
    problem(await upload(plane, bomb), 413, "payload_too_large")


async def test_a_function_mounts_layers_by_a_version_of_its_own(plane: Control) -> None:
    await plane.create()
    await publish(plane)
    await publish(plane, "more", {"other.py": encoded("x = 1")})
    answer = await mount(plane, "more", "deps@1")
    assert answer.status_code == 200, answer.text
    assert [(layer["name"], layer["version"], layer["path"]) for layer in answer.json()["layers"]] == [
        ("more", 1, "/layers/0"),
        ("deps", 1, "/layers/1"),
    ]
    function = await plane.get("/functions/hello")
    assert (function["version"], function["layers"]) == (2, ["more@1", "deps@1"])
    assert (await mount(plane, "more@1", "deps")).json()["version"] == 2, "nothing has changed"
    await publish(plane, "more", {"other.py": encoded("x = 2")})
    assert (await plane.get("/functions/hello/layers"))["layers"][0]["version"] == 1, "what is mounted stays"
    await plane.patch(memory_mb=256)
    changed = await plane.client.put("/functions/hello/code", json={"code": "def handler(e, c): return 1"})
    assert changed.status_code == 200
    function = await plane.get("/functions/hello")
    assert (function["version"], function["layers"]) == (4, ["more@1", "deps@1"]), "other changes leave them"
    kept = await mount(plane, deploy="publish")
    assert (kept.json()["version"], kept.json()["layers"]) == (5, [])
    assert (await plane.get("/functions/hello"))["version"] == 4
    stale = await plane.client.put("/functions/hello/layers", json={"layers": []}, headers={"If-Match": '"old"'})
    problem(stale, 412, "etag_mismatch")


async def test_what_cannot_be_mounted_is_refused_by_name(plane: Control, database: Database) -> None:
    """BE6: too many, too large, for another runtime, unknown, or on a backend that has none."""
    await plane.create()
    await publish(plane, runtimes=["node"])
    for number in range(7):
        await publish(plane, f"l{number}", {"f": encoded(str(number))})
    assert fields(problem(await mount(plane, "l0", "deps"), 400, "validation_failed")) == ["layers.1"]
    assert fields(problem(await mount(plane, "l0", "l0@1"), 400, "validation_failed")) == ["layers.1"]
    for unknown in ("nobody", "l0@2", "l0@x", "l0@", "../l0"):
        assert fields(problem(await mount(plane, unknown), 400, "validation_failed")) == ["layers.0"]
    problem(await mount(plane, *(f"l{number}" for number in range(7))), 400, "validation_failed")
    await database.run("UPDATE layer_versions SET size = 300 << 20")
    large = problem(await mount(plane, "l0", "l1"), 413, "payload_too_large")
    assert large["limit"] == 512 << 20
    plane.backends.refuse.add("layers")
    assert fields(problem(await mount(plane, "l0"), 422, "unsupported")) == ["layers"]
    assert (await plane.get("/functions/hello"))["layers"] == []
    problem(await plane.client.put("/functions/nobody/layers", json={"layers": []}), 404, "not_found")
    plane.backends.refuse.clear()
    await database.run("UPDATE layer_versions SET size = 1")
    await publish(plane, "python-only", {"a": encoded("a")}, runtimes=["python"])
    await mount(plane, "python-only")
    answer = await plane.client.patch("/functions/hello", json={"runtime": "node", "code": "exports.handler = 1"})
    assert fields(problem(answer, 400, "validation_failed")) == ["layers.0"], "nor by a change of the runtime"


async def test_a_layer_is_kept_while_a_version_mounts_it(plane: Control) -> None:
    await plane.create()
    await publish(plane)
    await publish(plane, files={"a": encoded("a")})
    await mount(plane, "deps@1")
    await mount(plane)
    users = await plane.get("/layers/deps/functions")
    assert users["items"] == [{"function": "hello", "version": 2, "layer_version": 1, "live": False}]
    held = problem(await plane.client.delete("/layers/deps"), 409, "in_use")
    assert held["references"] == ["function:hello@2"]
    problem(await plane.client.delete("/layers/deps/versions/1"), 409, "in_use")
    assert (await plane.client.delete("/layers/deps/versions/2")).status_code == 204
    assert (await publish(plane, files={"b": encoded("b")})).json()["version"] == 3, "numbers are never given twice"
    await mount(plane, "deps@3")
    first = await plane.get("/layers/deps/functions?limit=1")
    second = await plane.get(f"/layers/deps/functions?cursor={first['next_cursor']}")
    assert [user["version"] for user in (*first["items"], *second["items"])] == [2, 4]
    assert (await plane.client.delete("/functions/hello")).status_code == 204
    assert (await plane.client.delete("/layers/deps")).status_code == 204
    problem(await plane.client.delete("/layers/deps"), 404, "not_found")


async def test_the_files_of_a_layer_stay_and_those_of_a_deleted_one_go(plane: Control) -> None:
    digest = (await publish(plane)).json()["digest"]
    while await plane.blobs.sweep(older_than_s=-1):
        pass
    assert (await plane.blobs.info(digest)).size > 0
    await plane.client.delete("/layers/deps")
    while await plane.blobs.sweep(older_than_s=-1):
        pass
    assert digest not in [row["sha256"] for row in await plane.database.fetch("SELECT sha256 FROM blobs")]


async def test_a_layer_belongs_to_its_namespace(database: Database) -> None:
    await database.run("INSERT INTO namespaces (tenant_id, name, description) VALUES ('default', 'other', '')")
    async with control(database) as plane:
        await publish(plane)
        there = {"X-Nova-Namespace": "other"}
        problem(await plane.client.get("/layers/deps", headers=there), 404, "not_found")
        function = {"name": "hello", "runtime": "python", "code": HELLO}
        assert (await plane.client.post("/functions", json=function, headers=there)).status_code == 201
        answer = await plane.client.put("/functions/hello/layers", json={"layers": ["deps"]}, headers=there)
        assert fields(problem(answer, 400, "validation_failed")) == ["layers.0"]
