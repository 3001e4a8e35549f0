import asyncio
import io
import os
import tarfile
from pathlib import Path

import pytest

from nova.clock import SystemClock
from nova.domain.tree import EXECUTABLE, FILE, LINK, SourceFile, Tree, pack
from nova.errors import NovaError
from nova.execution.artifacts import Artifacts, remove, unpack
from nova.store.blobs import TAR, BlobStore
from nova.store.db import Database

pytestmark = pytest.mark.anyio
TREE = Tree(
    [
        SourceFile("main.py", FILE, b"print(1)\n"),
        SourceFile("bin/tool", EXECUTABLE, b"#!/bin/sh\n"),
        SourceFile("bin/alias", LINK, b"tool"),
    ]
)


class HandClock(SystemClock):
    def __init__(self) -> None:
        self.time = 0.0

    def monotonic(self) -> float:
        return self.time


@pytest.fixture
def blobs(database: Database) -> BlobStore:
    return BlobStore(database)


async def stored(blobs: BlobStore, tree: Tree = TREE, entry: str = "main.py") -> str:
    return await blobs.put(pack(tree, entry), TAR)


async def test_an_artifact_is_unpacked_read_only(blobs: BlobStore, tmp_path: Path) -> None:
    artifacts = Artifacts(blobs, tmp_path / "a", max_bytes=1 << 30)
    await artifacts.start()
    code = await artifacts.materialise(await stored(blobs))
    modes = {str(path.relative_to(code)): path.lstat().st_mode & 0o777 for path in code.rglob("*")}
    assert modes == {"main.py": 0o444, "bin": 0o555, "bin/tool": 0o555, "bin/alias": 0o777, "handler": 0o777}
    assert (code / "handler").read_bytes() == b"print(1)\n"
    assert os.readlink(code / "bin/alias") == "tool"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


async def test_many_callers_unpack_once_and_one_that_leaves_harms_nobody(blobs: BlobStore, tmp_path: Path) -> None:
    artifacts = Artifacts(blobs, tmp_path, max_bytes=1 << 30)
    await artifacts.start()
    digest = await stored(blobs)
    callers = [asyncio.create_task(artifacts.materialise(digest)) for _ in range(20)]
    await asyncio.sleep(0)
    callers[0].cancel()
    found = await asyncio.gather(*callers[1:])
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [found[0].name]


async def test_what_is_there_survives_a_restart_and_half_work_does_not(blobs: BlobStore, tmp_path: Path) -> None:
    digest = await stored(blobs)
    first = Artifacts(blobs, tmp_path, max_bytes=1 << 30)
    await first.start()
    code = await first.materialise(digest)
    inode = code.stat().st_ino
    half = tmp_path / ".tmp-half"
    half.mkdir()
    (half / "x").write_text("")
    half.chmod(0o555)
    second = Artifacts(blobs, tmp_path, max_bytes=1 << 30)
    await second.start()
    assert not half.exists()
    assert (await second.materialise(digest)).stat().st_ino == inode


async def test_an_unknown_artifact_is_not_found_and_can_come_later(blobs: BlobStore, tmp_path: Path) -> None:
    artifacts = Artifacts(blobs, tmp_path, max_bytes=1 << 30)
    await artifacts.start()
    digest = "sha256:" + "0" * 64
    with pytest.raises(NovaError, match="not_found"):
        await artifacts.materialise(digest)
    assert list(tmp_path.iterdir()) == []
    assert (await artifacts.materialise(await stored(blobs))).is_dir()


async def test_a_damaged_blob_is_never_mounted(database: Database, blobs: BlobStore, tmp_path: Path) -> None:
    digest = await stored(blobs)
    await database.run("UPDATE blob_chunks SET data = set_byte(data, 1025, 0)")
    artifacts = Artifacts(blobs, tmp_path, max_bytes=1 << 30)
    await artifacts.start()
    with pytest.raises(OSError, match="has the digest"):
        await artifacts.materialise(digest)
    assert list(tmp_path.iterdir()) == []


async def test_the_least_recently_used_goes_unless_it_is_mounted(blobs: BlobStore, tmp_path: Path) -> None:
    clock, mounted = HandClock(), set[str]()
    artifacts = Artifacts(blobs, tmp_path, max_bytes=250, in_use=lambda: mounted, clock=clock)
    await artifacts.start()
    digests = [await stored(blobs, Tree([SourceFile("main.py", FILE, bytes([number]) * 100)])) for number in range(5)]
    mounted.add(digests[0])
    for digest in digests[:4]:
        await artifacts.materialise(digest)
        clock.time += 1000
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {digests[0][7:], digests[3][7:]}
    assert (await artifacts.materialise(digests[1])).is_dir()
    clock.time += 1
    await artifacts.materialise(digests[4])
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept >= {digests[0][7:], digests[1][7:], digests[4][7:]}, "what was asked for a moment ago stays"


@pytest.mark.parametrize("name", ["../out", "a/../../out", "link/out", "missing/out"])
def test_an_archive_writes_nothing_outside(tmp_path: Path, name: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        tar.addfile(link)
        bad = tarfile.TarInfo(name)
        bad.size = 1
        tar.addfile(bad, io.BytesIO(b"x"))
    buffer.seek(0)
    with pytest.raises(OSError, match="out of place"):
        unpack(buffer, inside)
    assert list(outside.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "outside"]


def test_read_only_trees_can_be_removed(tmp_path: Path) -> None:
    tree = tmp_path / "a" / "b"
    tree.mkdir(parents=True)
    (tree / "file").write_text("")
    for path in (tree, tree.parent):
        path.chmod(0o555)
    remove(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
