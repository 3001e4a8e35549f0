"""Images are made without root's mounts, hold what an agent needs and nothing of this host, and are made once."""

import asyncio
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nova.errors import NovaError
from nova.execution.images import ImageFile, Images, packing, tree
from nova.execution.images.commands import as_root
from nova.execution.images.recipe import Recipe
from nova.runtimes.registry import Runtimes
from tests import imaging

pytestmark = pytest.mark.skipif(bool(imaging.obstacle("ext4")), reason=imaging.obstacle("ext4"))


@pytest.fixture(scope="module")
def runtimes() -> Runtimes:
    return Runtimes()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("image") / "root"
    tree.unpack(imaging.image("python", "tar").path, folder)
    yield folder
    packing.remove(folder)


@pytest.fixture
def fresh(tmp_path: Path, runtimes: Runtimes) -> Images:
    """Without images, but with the packages that others share."""
    imaging.image("custom", "tar")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "stems").symlink_to(imaging.cache() / "stems")
    return Images(tmp_path / "images", runtimes)


def inside(root: Path, *argv: str) -> str:
    return subprocess.run(
        as_root("chroot", str(root), *argv),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PATH": "/usr/sbin:/usr/bin"},
    ).stdout


def test_an_image_holds_an_agent_that_can_start(unpacked: Path) -> None:
    script = "import sys; sys.path.insert(0, '/opt/nova/lib'); import nova.agent.supervisor, nova.runtimes.python.bootstrap, ssl"
    certificates = "; print(ssl.create_default_context().cert_store_stats()['x509_ca'])"
    assert int(inside(unpacked, "/usr/bin/python3", "-IS", "-c", script + certificates)) > 100
    assert inside(unpacked, "/bin/sh", "-c", "echo hello | sed s/h/H/") == "Hello\n"
    for name in ("boot", "init"):
        assert os.access(unpacked / "opt/nova" / name, os.X_OK)
    assert all(
        (unpacked / name).is_dir() for name in ("code", "layers", "mnt", "tmp", "proc", "sys", "dev", "run/nova")
    )
    source = unpacked / "usr/lib/python3.11/json/__init__.py"
    assert list((source.parent / "__pycache__").glob("__init__.*.pyc")), "compiled: its root is read-only where it runs"


def test_an_image_has_nothing_of_this_host_and_nothing_that_gains_rights(unpacked: Path) -> None:
    with tarfile.open(imaging.image("python", "tar").path) as tar:
        entries = tar.getmembers()
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries} == {(0, 0, 0)}
    assert not [entry.name for entry in entries if entry.mode & 0o6000 or entry.isdev()]
    names = {entry.name for entry in entries}
    assert not names & {"usr/bin/apt", "usr/bin/dpkg", "usr/bin/perl", "etc/shadow", "usr/bin/mount", "usr/bin/su"}
    assert (unpacked / "etc/resolv.conf").read_text() == ""
    assert (unpacked / "etc/hostname").read_text() == "instance\n"
    assert "nobody:x:65534:65534" in (unpacked / "etc/passwd").read_text()


def test_a_machine_gets_the_same_files_as_a_container(unpacked: Path) -> None:
    drive = str(imaging.image("python", "ext4").path)
    environment = {"PATH": "/usr/sbin:/usr/bin"}
    subprocess.run(["e2fsck", "-fn", drive], check=True, capture_output=True, env=environment)
    for path in ("/opt/nova/agent.json", "/usr/bin/python3.11", "/etc/ssl/certs/ca-certificates.crt"):
        shown = subprocess.run(
            ["debugfs", "-R", f"cat {path}", drive], check=True, capture_output=True, env=environment
        )
        assert shown.stdout == (unpacked / path.removeprefix("/")).read_bytes()
    owner = subprocess.run(
        ["debugfs", "-R", "stat /opt/nova/init", drive], check=True, capture_output=True, env=environment
    )
    assert b"User:     0   Group:     0" in owner.stdout


def test_node_is_the_program_that_this_host_builds_for(runtimes: Runtimes) -> None:
    image = imaging.image("node", "tar")
    assert image.version == runtimes.resolve("node").version
    assert imaging.images().launch("node").argv == ("/usr/bin/node", "/opt/nova/lib/nova/runtimes/node/bootstrap.cjs")
    with tarfile.open(image.path) as tar:
        assert tar.getmember("opt/nova/lib/nova/runtimes/node/bootstrap.cjs").isfile()
        assert "opt/nova/lib/nova/runtimes/python/bootstrap.py" not in tar.getnames()


def test_what_is_missing_is_refused_with_the_command_that_makes_it(fresh: Images) -> None:
    """BE11: one image that is not there is one refusal, and says how to get it."""
    assert fresh.find("python", "ext4") is None
    with pytest.raises(NovaError) as refused:
        fresh.require("python", "ext4")
    assert refused.value.code == "runtime_unavailable"
    assert refused.value.detail.endswith("nova runtime build python --form ext4")


def test_two_at_once_make_one_image(fresh: Images) -> None:
    said: list[str] = []

    async def both() -> list[ImageFile]:
        return await asyncio.gather(*(fresh.build("custom", "tar", said.append) for _ in range(2)))

    one, other = asyncio.run(both())
    assert one == other
    assert one.path.read_bytes()[:100] == imaging.image("custom", "tar").path.read_bytes()[:100]
    assert said.count("writing the tar form") == 1
    assert fresh.list() == [one]
    again: list[str] = []
    assert fresh.build_now("custom", "tar", again.append) == one
    assert again == []


def test_the_same_parts_make_the_same_bytes(fresh: Images) -> None:
    made = fresh.build_now("custom", "tar", lambda _step: None)
    before = imaging.image("custom", "tar")
    assert made.digest == before.digest
    assert made.path.read_bytes() == before.path.read_bytes()


def test_a_build_that_fails_leaves_nothing(fresh: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "pack_tar", full)
    with pytest.raises(OSError, match="No space"):
        fresh.build_now("custom", "tar", lambda _step: None)
    assert not list(fresh.folder.glob(".making*"))
    assert fresh.find("custom", "tar") is None
    assert fresh.list() == []


def test_another_agent_is_another_image(runtimes: Runtimes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Images(tmp_path, runtimes).digest("python")
    assert before == Images(tmp_path, runtimes).digest("python") != Images(tmp_path, runtimes).digest("node")
    changed = tmp_path / "changed.py"
    changed.write_text("# not the agent\n")
    sources = Recipe.sources
    monkeypatch.setattr(Recipe, "sources", lambda self: [*sources(self), ("nova/agent/more.py", changed)])
    assert Images(tmp_path, runtimes).digest("python") != before
