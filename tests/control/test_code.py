"""Code: every way in, every way to read it back, and builds that follow."""

import base64
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from nova.config import FunctionSettings, LimitSettings, Settings
from nova.domain.identity import Scope
from nova.store.db import Database
from tests.control.support import HELLO, Control, control, fields, problem, tar_member, tar_of, zip_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rooted(database: Database, tmp_path: Path) -> AsyncIterator[Control]:
    """With ``tmp_path/root`` as the only folder that code_path may read, and small limits."""
    root = tmp_path / "root"
    root.mkdir()
    settings = Settings(
        functions=FunctionSettings(code_path_roots=[root]), limits=LimitSettings(code_mb=1, unpacked_mb=2, file_mb=1)
    )
    async with control(database, settings) as running:
        yield running


async def test_inline_code_is_stored_under_the_handlers_module(plane: Control) -> None:
    await plane.create("a", handler="pkg.mod.Api.run", code="class Api: ...")
    await plane.create("b", runtime="node", handler="src/app.go", code="exports.go = () => 1")
    await plane.create("c", runtime="custom", code="#!/bin/sh\ncat\n")
    assert [file["path"] for file in (await plane.get("/functions/a/files"))["items"]] == ["pkg/mod/Api.py"]
    assert [file["path"] for file in (await plane.get("/functions/b/files"))["items"]] == ["src/app.js"]
    (bootstrap,) = (await plane.get("/functions/c/files"))["items"]
    assert (bootstrap["path"], bootstrap["executable"], bootstrap["is_entry"]) == ("bootstrap", True, True)


async def test_files_come_back_byte_for_byte(plane: Control) -> None:
    binary = bytes(range(256)) * 5000
    files = {
        "main.py": HELLO,
        "data/blob.bin": {"base64": base64.b64encode(binary).decode()},
        "tool": {"base64": base64.b64encode(b"#!/bin/sh").decode(), "executable": True},
        "weird 'name;\".txt": "ü",
        "empty": "",
    }
    await plane.create(files=files)
    listed = {file["path"]: file for file in (await plane.get("/functions/hello/files"))["items"]}
    assert listed.keys() == files.keys()
    assert [path for path, file in listed.items() if file["executable"]] == ["tool"]
    assert [path for path, file in listed.items() if file["is_entry"]] == ["main.py"]
    one = await plane.client.get("/functions/hello/files/content", params={"path": "data/blob.bin"})
    assert one.content == binary
    assert one.headers["Content-Type"] == "application/octet-stream"
    everything = await plane.get("/functions/hello/files/content")
    assert everything["weird 'name;\".txt"] == "ü"
    assert base64.b64decode(everything["data/blob.bin"]["base64"]) == binary
    problem(await plane.client.get("/functions/hello/files/content?path=nope"), 404, "not_found")
    problem(await plane.client.get("/functions/hello/files?version=7"), 404, "not_found")
    code = await plane.get("/functions/hello/code")
    assert (code["source_code"], code["entry_point"], code["files_count"]) == (HELLO, "main.py", 5)
    members = await plane.artifact()
    assert (members["data"].isdir(), members["tool"].mode, members["main.py"].mode) == (True, 0o755, 0o644)


async def test_bad_paths_are_refused(plane: Control) -> None:
    for path in ("../x", "/x", "a/../x", "a//b", "a\nb", "", ".", "a\\b", "x" * 257, "/".join("a" * 33)):
        body = {"name": "hello", "runtime": "python", "files": {"main.py": HELLO, path: ""}}
        problem(await plane.client.post("/functions", json=body), 400, "validation_failed")


async def test_bad_files_are_refused(plane: Control) -> None:
    for files in ({}, {"a": "", "a/b": ""}, {"main.py": {"base64": "%"}}, {"main.py": 1}, {"main.py": {}}):
        body = {"name": "hello", "runtime": "python", "files": files}
        problem(await plane.client.post("/functions", json=body), 400, "validation_failed")


async def test_entry_point_is_given_found_or_asked_for(plane: Control) -> None:
    """AG20: a handler that does not exist fails the deploy with its name in the message."""
    listed = await plane.create("a", files={"app.py": HELLO, "util.py": ""})
    assert (listed["entry_point"], listed["handler"]) == ("app.py", "app.handler")
    package = await plane.create("b", files={"pkg/__init__.py": HELLO}, handler="pkg.handler")
    assert package["entry_point"] == "pkg/__init__.py"
    script = await plane.create("c", code="import sys, json\nprint(json.dumps(1))\n")
    assert script["entry_kind"] == "script"
    program = await plane.create("p", runtime="provided", files={"bootstrap": {"base64": "f0VMRg=="}})
    assert program["entry_kind"] == "handler", "no text, and no script either: its worker runs it"
    unknown = {"name": "d", "runtime": "python", "files": {"lib/x.py": ""}}
    document = problem(await plane.client.post("/functions", json=unknown), 400, "validation_failed")
    assert "main.py" in document["detail"]
    missing = {**unknown, "handler": "nowhere.run"}
    assert (
        "nowhere.run"
        in problem(await plane.client.post("/functions", json=missing), 400, "validation_failed")["detail"]
    )
    chosen = await plane.client.put(
        "/functions/a/code", json={"files": {"src/x.py": HELLO, "main.py": ""}, "entry_point": "src/x.py"}
    )
    assert chosen.json()["entry_point"] == "src/x.py"
    assert (await plane.get("/functions/a"))["handler"] == "src.x.handler"
    kept = await plane.patch("a", memory_mb=256, env_vars={"A": "1"})
    assert kept["entry_point"] == "src/x.py"
    bad = await plane.client.put("/functions/a/code", json={"code": HELLO, "entry_point": "x.py"})
    assert fields(problem(bad, 400, "validation_failed")) == ["entry_point"]


async def test_code_put_deploys_or_only_publishes(plane: Control) -> None:
    await plane.create()
    answer = await plane.client.put(
        "/functions/hello/code", json={"code": "def handler(): return 2", "description": "2"}
    )
    assert answer.status_code == 200
    assert answer.json()["version"] == 2
    assert (await plane.get("/functions/hello"))["version"] == 2
    assert (await plane.get("/functions/hello/versions/2"))["description"] == "2"
    parked = await plane.client.put(
        "/functions/hello/code", json={"code": "def handler(): return 3", "deploy": "publish"}
    )
    assert parked.json()["version"] == 3
    shown = await plane.get("/functions/hello")
    assert (shown["version"], shown["latest_version"]) == (2, 3)
    same = await plane.client.put("/functions/hello/code", json={"code": "def handler(): return 3"})
    assert same.json()["version"] == 3
    problem(await plane.client.put("/functions/hello/code", json={}), 400, "validation_failed")
    problem(await plane.client.put("/functions/nope/code", json={"code": "x"}), 404, "not_found")
    problem(await plane.client.put("/functions/hello/code", json={"code": "", "memory_mb": 1}), 400, "unknown_field")
    stale = await plane.client.put("/functions/hello/code", json={"code": ""}, headers={"If-Match": '"old"'})
    problem(stale, 412, "etag_mismatch")
    assert (await plane.get("/functions/hello/code?version=2"))["source_code"] == "def handler(): return 2"


@pytest.mark.parametrize(
    "archive",
    [
        zip_of({"main.py": HELLO, "lib/util.py": "x"}),
        tar_of((tar_member("main.py"), HELLO.encode()), (tar_member("lib/util.py"), b"x")),
        tar_of((tar_member("main.py"), HELLO.encode()), (tar_member("lib/util.py"), b"x"), mode="w"),
    ],
    ids=["zip", "tar.gz", "tar"],
)
async def test_archives_are_deployed(plane: Control, archive: bytes) -> None:
    await plane.create(code="old")
    answer = await plane.upload(archive, description="from an archive")
    assert answer.status_code == 200, answer.text
    assert answer.json()["file_count"] == 2
    assert (await plane.get("/functions/hello/files/content"))["lib/util.py"] == "x"
    assert (await plane.get("/functions/hello/versions/2"))["description"] == "from an archive"


async def test_put_function_takes_an_archive_too(plane: Control) -> None:
    files = {"archive": ("x.zip", zip_of({"main.py": HELLO}))}
    answer = await plane.client.put(
        "/functions/hello", files=files, data={"meta": '{"runtime":"python","memory_mb":256}'}
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["memory_mb"] == 256
    both = {"meta": '{"runtime":"python","code":"x"}'}
    problem(await plane.client.put("/functions/hello", files=files, data=both), 400, "validation_failed")


async def test_bad_uploads_are_refused(plane: Control) -> None:
    """BE8: what an archive must not hold is refused at upload, and nothing is deployed."""
    await plane.create()
    evil = tar_of((tar_member("main.py"), b""), (tar_member("x", tarfile.SYMTYPE, link="/etc/passwd"), b""))
    assert "leads out" in problem(await plane.upload(evil), 400, "validation_failed")["detail"]
    problem(await plane.upload(b"not an archive"), 415, "unsupported_media_type")
    good = ("x.zip", zip_of({"main.py": HELLO}))

    async def put(**kwargs: object) -> httpx.Response:
        return await plane.client.put("/functions/hello/code", **kwargs)  # type: ignore[arg-type]

    problem(await put(files={"archive": good, "other": good}), 400, "validation_failed")
    problem(await put(files={"file": good}), 400, "unknown_field")
    problem(await put(files={"meta": good}), 400, "validation_failed")
    problem(await put(files={"archive": good}, data={"meta": "{"}), 400, "invalid_json")
    problem(await put(files={"archive": good}, data={"meta": '{"x":1}'}), 400, "unknown_field")
    problem(await put(content=b"--x", headers={"Content-Type": "multipart/form-data"}), 400, "validation_failed")
    problem(await put(content=b"{}", headers={"Content-Type": "text/plain"}), 415, "unsupported_media_type")
    problem(await put(content=b"[]"), 400, "validation_failed")
    assert (await plane.get("/functions/hello"))["latest_version"] == 1


async def test_limits_on_code_hold(rooted: Control) -> None:
    """BU7: neither large code nor a small archive that unpacks to too much gets in."""
    await rooted.create()
    put = rooted.client.put
    large = "#" * ((1 << 20) + 1)
    document = problem(await put("/functions/hello/code", json={"code": large}), 413, "payload_too_large")
    assert document["limit_bytes"] == 1 << 20
    problem(await put("/functions/hello/code", json={"files": {"main.py": large}}), 413, "payload_too_large")
    problem(await rooted.upload(zip_of({"main.py": bytes(50 << 20)})), 413, "payload_too_large")
    assert (await rooted.get("/functions/hello"))["latest_version"] == 1


async def test_all_files_at_once_only_while_they_fit_an_answer(database: Database) -> None:
    async with control(database, Settings(limits=LimitSettings(body_mb=1, code_mb=2))) as plane:
        await plane.create(code="#" * (1 << 20))
        assert (await plane.client.get("/functions/hello/files/content")).status_code == 200
        await plane.create("large", code="#" * ((1 << 20) + 1))
        problem(await plane.client.get("/functions/large/files/content"), 413, "payload_too_large")
        assert len((await plane.client.get("/functions/large/files/content?path=main.py")).content) == (1 << 20) + 1


async def test_code_path_copies_at_once(rooted: Control, tmp_path: Path) -> None:
    project = tmp_path / "root" / "project"
    (project / "lib").mkdir(parents=True)
    (project / ".git").mkdir()
    (project / ".git" / "config").write_text("x")
    (project / "main.py").write_text(HELLO)
    (project / "lib" / "run").write_text("#!/bin/sh")
    (project / "lib" / "run").chmod(0o755)
    (project / "link").symlink_to("lib/run")
    await rooted.create("a", code_path=str(project))
    (project / "main.py").write_text("changed")
    listed = {file["path"]: file for file in (await rooted.get("/functions/a/files"))["items"]}
    assert listed.keys() == {"main.py", "lib/run", "link"}
    assert (listed["lib/run"]["executable"], listed["link"]["link"]) == (True, True)
    assert (await rooted.get("/functions/a/code"))["source_code"] == HELLO
    (project / "single.py").write_text("def go(): ...")
    await rooted.create("b", code_path=str(project / "single.py"), handler="app.go")
    assert [file["path"] for file in (await rooted.get("/functions/b/files"))["items"]] == ["app.py"]


async def test_code_path_stays_inside_its_roots(rooted: Control, tmp_path: Path) -> None:
    """SE4: a path given through the API reads nothing outside the folders that are allowed."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (outside / "main.py").write_text("secret")
    (root / "door").symlink_to(outside)
    (tmp_path / "root-twin").mkdir()
    (tmp_path / "root-twin" / "main.py").write_text("secret")
    body = {"name": "hello", "runtime": "python"}
    for path in (
        outside,
        outside / "main.py",
        root / "door",
        root / "door" / "main.py",
        f"{root}/../outside",
        "/etc/passwd",
        "/nonexistent",
        tmp_path / "root-twin",
    ):
        answer = await rooted.client.post("/functions", json={**body, "code_path": str(path)})
        problem(answer, 403, "forbidden")
    (root / "in").mkdir()
    (root / "in" / "main.py").symlink_to(outside / "main.py")
    answer = await rooted.client.post("/functions", json={**body, "code_path": str(root / "in")})
    assert "leads out" in problem(answer, 400, "validation_failed")["detail"]
    os.mkfifo(root / "pipe")
    (root / "empty").mkdir()
    for path in ("root/relative", str(root / "missing"), str(root / "pipe"), str(root / "empty")):
        answer = await rooted.client.post("/functions", json={**body, "code_path": path})
        assert fields(problem(answer, 400, "validation_failed")) == ["code_path"]


async def test_without_roots_code_path_is_forbidden(plane: Control, tmp_path: Path) -> None:
    body = {"name": "hello", "runtime": "python", "code_path": str(tmp_path)}
    problem(await plane.client.post("/functions", json=body), 403, "forbidden")


async def test_dependencies_ask_for_a_build(plane: Control) -> None:
    """BU10: a deploy with dependencies returns at once with a build to follow; no install runs inside the request."""
    created = await plane.create(dependency_files={"requirements.txt": "left-pad==1\n"})
    assert (created["compile_status"], created["version"], created["latest_version"]) == ("pending", None, 1)
    assert created["dependency_files"] == ["requirements.txt"]
    build = await plane.builds.get(Scope(), created["build_id"])
    assert (build.version, build.status, build.activate) == (1, "queued", True)
    assert await plane.database.one("SELECT kind, subject::text AS id FROM work") == {"kind": "build", "id": build.id}


async def test_a_deploy_that_must_be_built_leaves_the_live_version_serving(plane: Control) -> None:
    """BU4: a failed dependency install fails the deploy; the live version keeps serving."""
    await plane.create()
    answer = await plane.client.put(
        "/functions/hello/code", json={"code": HELLO, "dependency_files": {"requirements.txt": "nope"}}
    )
    assert answer.status_code == 202
    build_id = answer.json()["build_id"]
    async with plane.database.transaction() as conn:
        await plane.builds.fail(conn, build_id, "no such package")
    shown = await plane.get("/functions/hello")
    assert (shown["version"], shown["compile_status"], shown["compile_error"]) == (1, "failed", "no such package")
    problem(await plane.client.post("/functions/hello/versions/2/activate"), 424, "build_failed")


async def test_a_built_tree_is_reused_while_only_settings_change(plane: Control) -> None:
    created = await plane.create(dependency_files={"requirements.txt": "x"})
    artifact = await plane.blobs.put(b"the built tree")
    async with plane.database.transaction() as conn:
        assert await plane.builds.succeed(conn, created["build_id"], artifact, cached=False)
    assert (await plane.get("/functions/hello"))["version"] == 1
    changed = await plane.patch(memory_mb=512)
    assert (changed["version"], changed["compile_status"]) == (2, "success")
    assert (await plane.get("/functions/hello/versions/2"))["artifact"] == artifact
    moved = await plane.patch(code="def handler(): return 2")
    assert (moved["compile_status"], moved["version"], moved["dependency_files"]) == (
        "pending",
        2,
        ["requirements.txt"],
    )
    freed = await plane.patch(dependency_files=None)
    assert (freed["compile_status"], freed["version"], freed["dependency_files"]) == ("not_required", 4, [])


async def test_a_manifest_is_not_given_twice(plane: Control) -> None:
    body = {
        "name": "hello",
        "runtime": "python",
        "files": {"main.py": HELLO, "requirements.txt": "a"},
        "dependency_files": {"requirements.txt": "b"},
    }
    problem(await plane.client.post("/functions", json=body), 400, "validation_failed")
