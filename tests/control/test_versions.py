"""Versions: publish, compare, go back, delete."""

import asyncio
from typing import Any

import pytest

from nova.control.versions import MAX_DIFF_BYTES, MAX_DIFF_LINES
from nova.domain.identity import Scope
from tests.control.support import HELLO, Control, problem

pytestmark = pytest.mark.anyio
TWO = "def handler(event, context):\n    return 2\n"


async def test_a_version_is_whole(plane: Control) -> None:
    """AP1: a version holds everything that shapes execution."""
    await plane.create(
        files={"main.py": HELLO, "x.bin": "x"},
        memory_mb=256,
        env_vars={"A": "1"},
        network_policy={"isolation_mode": "strict"},
        max_replicas=7,
    )
    version = await plane.get("/functions/hello/versions/1")
    assert (version["version"], version["live"], version["created_by"]) == (1, True, "operator")
    frozen = version["config"]
    assert (frozen["memory_mb"], frozen["env_vars"], frozen["max_replicas"]) == (256, {"A": "1"}, 7)
    assert frozen["network_policy"]["isolation_mode"] == "strict"
    assert [file["path"] for file in version["files"]] == ["main.py", "x.bin"]
    assert version["code_hash"].startswith("sha256:")
    assert len(version["code_hash"]) == 7 + 64


async def test_going_back_restores_everything_in_one_step(plane: Control) -> None:
    """AP1: activating a version restores its configuration and the policies that it recorded."""
    await plane.create(max_replicas=5, function_url={"enabled": True, "invoke_mode": "stream"}, memory_mb=256)
    await plane.patch(code=TWO, memory_mb=512, max_replicas=50, function_url={"enabled": False})
    assert (await plane.get("/functions/hello"))["version"] == 2
    answer = await plane.client.post("/functions/hello/versions/1/activate")
    assert answer.status_code == 200
    for shown in (answer.json(), await plane.get("/functions/hello")):
        assert (shown["version"], shown["head_version"], shown["latest_version"]) == (1, 1, 2)
        assert (shown["max_replicas"], shown["memory_mb"]) == (5, 256)
        assert shown["function_url"] == {"enabled": True, "invoke_mode": "stream"}
    assert (await plane.get("/functions/hello/code"))["source_code"] == HELLO


async def test_numbers_are_never_reused(plane: Control) -> None:
    """AP2: publishing after going back gets the next free number, also when later versions were deleted."""
    await plane.create()
    await plane.patch(code=TWO)
    await plane.client.post("/functions/hello/versions/1/activate")
    assert (await plane.client.delete("/functions/hello/versions/2")).status_code == 204
    changed = await plane.patch(memory_mb=256)
    assert (changed["version"], changed["latest_version"]) == (3, 3)
    assert (await plane.get("/functions/hello/code"))["source_code"] == HELLO
    problem(await plane.client.get("/functions/hello/versions/2"), 404, "not_found")


async def test_publish_freezes_what_changed_since(plane: Control) -> None:
    await plane.create()
    same = await plane.client.post("/functions/hello/versions", json={"description": "nothing new"})
    assert (same.status_code, same.json()["version"]) == (200, 1)
    await plane.patch(max_replicas=9)
    published = await plane.client.post("/functions/hello/versions", json={"description": "nine"})
    assert (published.status_code, published.json()["version"]) == (201, 2)
    assert published.json()["config"]["max_replicas"] == 9
    assert published.json()["description"] == "nine"
    assert published.headers["Location"].endswith("/functions/hello/versions/2")
    assert (await plane.get("/functions/hello"))["version"] == 1
    assert (await plane.client.post("/functions/hello/versions", json={})).status_code == 200


async def test_versions_in_use_are_kept(plane: Control) -> None:
    await plane.create()
    await plane.patch(code=TWO)
    await plane.client.post("/functions/hello/aliases", json={"name": "old", "version": 1})
    live = problem(await plane.client.delete("/functions/hello/versions/2"), 409, "in_use")
    assert live["references"] == ["live"]
    aliased = problem(await plane.client.delete("/functions/hello/versions/1"), 409, "in_use")
    assert aliased["references"] == ["alias:old"]
    await plane.client.delete("/functions/hello/aliases/old")
    assert (await plane.client.delete("/functions/hello/versions/1")).status_code == 204
    problem(await plane.client.delete("/functions/hello/versions/1"), 404, "not_found")


async def test_deleting_a_failed_deploy_goes_back_to_the_live_version(plane: Control) -> None:
    await plane.create()
    parked = await plane.patch(code=TWO, deploy="publish")
    assert (parked["head_version"], parked["version"]) == (2, 1)
    assert (await plane.client.delete("/functions/hello/versions/2")).status_code == 204
    shown = await plane.get("/functions/hello")
    assert (shown["head_version"], shown["version"], shown["latest_version"]) == (1, 1, 1)
    await plane.create("fresh", dependency_files={"requirements.txt": "x"})
    only = problem(await plane.client.delete("/functions/fresh/versions/1"), 409, "in_use")
    assert only["references"] == ["deploy"]


async def test_a_version_that_is_not_built_cannot_go_live(plane: Control) -> None:
    created = await plane.create(dependency_files={"requirements.txt": "x"})
    waiting = await plane.client.post("/functions/hello/versions/1/activate")
    problem(waiting, 503, "build_pending")
    assert waiting.headers["Retry-After"] == "1"
    async with plane.database.transaction() as conn:
        await plane.builds.fail(conn, created["build_id"], "no such package x")
    failed = problem(await plane.client.post("/functions/hello/versions/1/activate"), 424, "build_failed")
    assert failed["build_id"] == created["build_id"]


async def test_a_build_that_ends_late_does_not_replace_a_newer_deploy(plane: Control) -> None:
    """BU3: an older build that finishes last does not replace a newer one."""
    created = await plane.create(dependency_files={"requirements.txt": "x"})
    await plane.patch(dependency_files=None)
    async with plane.database.transaction() as conn:
        await plane.builds.succeed(conn, created["build_id"], await plane.blobs.put(b"late"), cached=False)
    shown = await plane.get("/functions/hello")
    assert (shown["version"], (await plane.get("/functions/hello/versions/1"))["compile_status"]) == (2, "success")


async def test_diff_names_fields_and_lines(plane: Control) -> None:
    await plane.create(
        files={"main.py": HELLO, "gone.txt": "bye\n", "same.txt": "same", "data.bin": {"base64": "/w=="}},
        memory_mb=128,
        env_vars={"A": "1"},
    )
    await plane.patch(
        files={"main.py": TWO, "new.txt": "hi\n", "same.txt": "same", "data.bin": {"base64": "/g=="}},
        memory_mb=256,
        env_vars={"A": "2", "B": "3"},
    )
    diff = await plane.get("/functions/hello/versions/1/diff/2")
    assert {change["field"]: (change["from"], change["to"]) for change in diff["changes"]} == {
        "memory_mb": (128, 256),
        "env_vars.A": ("1", "2"),
        "env_vars.B": (None, "3"),
    }
    files = {file["path"]: file for file in diff["files"]}
    assert {path: file["change"] for path, file in files.items()} == {
        "data.bin": "modified",
        "gone.txt": "removed",
        "main.py": "modified",
        "new.txt": "added",
    }
    assert files["data.bin"]["unified_diff"] is None
    assert "+    return 2\n" in files["main.py"]["unified_diff"]
    assert files["new.txt"]["unified_diff"].startswith("--- /dev/null\n+++ b/new.txt\n")
    assert (await plane.get("/functions/hello/versions/1/diff/1")) == {"changes": [], "files": []}


async def test_what_is_too_large_to_compare_is_only_named(plane: Control) -> None:
    lines = "x\n" * (MAX_DIFF_LINES + 1)
    await plane.create(
        files={"main.py": HELLO, "long.txt": lines, "wide.txt": "x" * MAX_DIFF_BYTES, "short.txt": "a\n"}
    )
    await plane.patch(
        files={"main.py": HELLO, "long.txt": f"{lines}y", "wide.txt": "y" * (MAX_DIFF_BYTES + 1), "short.txt": "b\n"}
    )
    files = {file["path"]: file for file in (await plane.get("/functions/hello/versions/1/diff/2"))["files"]}
    assert {path: file["unified_diff"] is None for path, file in files.items()} == {
        "long.txt": True,
        "wide.txt": True,
        "short.txt": False,
    }


async def test_lists_page_newest_first(plane: Control) -> None:
    await plane.create()
    for i in range(4):
        await plane.patch(timeout_s=i + 1)
    first = await plane.get("/functions/hello/versions?limit=3")
    assert [item["version"] for item in first["items"]] == [5, 4, 3]
    assert [item["live"] for item in first["items"]] == [True, False, False]
    rest = await plane.get(f"/functions/hello/versions?limit=3&cursor={first['next_cursor']}")
    assert ([item["version"] for item in rest["items"]], rest["next_cursor"]) == ([2, 1], None)


async def test_what_is_no_version_is_not_found(plane: Control) -> None:
    """AP3: an unknown resource is a 404, never a 500."""
    await plane.create()
    for number in ("0", "9", "x", "-1", "99999999999999999999", "1%00", "%31%2F2"):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/activate"), ("GET", "/diff/1")):
            answer = await plane.client.request(method, f"/functions/hello/versions/{number}{path}")
            assert answer.status_code in (400, 404, 405), (number, method, answer.text)
    problem(await plane.client.get("/functions/none/versions/1"), 404, "not_found")


async def test_activations_race_without_mixing(plane: Control) -> None:
    """DB11: concurrent activations end in the state of one of them, not in a mixture."""
    await plane.create(max_replicas=1)
    await plane.patch(code=TWO, max_replicas=2)
    calls: list[Any] = [plane.client.post(f"/functions/hello/versions/{1 + i % 2}/activate") for i in range(8)]
    assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}
    function = await plane.functions.lookup(Scope(), "hello")
    assert function is not None
    assert function.live_version == function.head_version == function.settings.recorded.max_replicas
