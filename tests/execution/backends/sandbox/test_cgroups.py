"""Control groups of both versions on a tree of plain files, and where they are looked for."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from nova.execution.backends.sandbox import cgroups
from nova.execution.backends.sandbox.cgroup_layout import Layout, find_layout
from nova.execution.backends.sandbox.cgroups import GroupsV1, GroupsV2, NoGroups, Usage


def v2_folder(path: Path, controllers: str = "cpu io memory pids") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name in ("cgroup.procs", "cgroup.subtree_control", "memory.swap.max"):
        (path / name).write_text("")
    (path / "cgroup.controllers").write_text(controllers)
    return path


def fill(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


FILES_V2 = [
    "cgroup.procs",
    "memory.oom.group",
    "memory.max",
    "memory.swap.max",
    "cpu.max",
    "cpu.weight",
    "pids.max",
    "memory.events",
    "memory.current",
    "cpu.stat",
    "pids.current",
    "cgroup.kill",
    "cgroup.subtree_control",
]


@pytest.fixture
def made_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake hierarchy in which mkdir fills a folder as the kernel does."""
    real = os.mkdir

    def mkdir(path: str, *args: object) -> None:
        real(path)
        for name in FILES_V2:
            Path(path, name).write_text("")

    base = v2_folder(tmp_path / "top")
    monkeypatch.setattr("nova.execution.backends.sandbox.cgroups.os.mkdir", mkdir)
    return base


def test_version_2(made_v2: Path) -> None:
    groups = GroupsV2(str(made_v2), "n")
    assert (made_v2 / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    assert (made_v2 / "nova-n" / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    group = groups.create("one")
    folder = made_v2 / "nova-n" / "one"
    assert (folder / "memory.oom.group").read_text() == "1"
    group.limit(256 << 20, 0.5, 0.145, 64)
    written = {name: (folder / name).read_text() for name in ("memory.max", "memory.swap.max", "cpu.max", "pids.max")}
    assert written == {
        "memory.max": str(256 << 20),
        "memory.swap.max": "0",
        "cpu.max": "50000 100000",
        "pids.max": "64",
    }
    assert (folder / "cpu.weight").read_text() == "14"
    fill(
        folder,
        memory__events="low 0\noom 2\noom_kill 3\n",
        memory__current="4096\n",
        cpu__stat="usage_usec 77\nuser_usec 5\n",
        pids__current="2\n",
    )
    assert group.oom_kills() == 3
    assert group.usage() == Usage(4096, 77, 2)
    assert groups.leftovers() == ["one"]
    groups.sweep()
    assert (folder / "cgroup.kill").read_text() == "1"
    assert not group.destroy(), "a folder the kernel still holds is reported, not forgotten"


def test_a_predecessor_that_cleans_up_late_does_no_harm(made_v2: Path) -> None:
    """BE2: the launcher of a killed daemon may remove the node's folder after the new one has found it."""
    groups = GroupsV2(str(made_v2), "n")
    shutil.rmtree(made_v2 / "nova-n")
    groups.create("one")
    assert groups.leftovers() == ["one"]


def test_version_2_needs_no_processes_beside_children(made_v2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group with processes of its own refuses children with controllers; its processes are moved aside first."""
    real = cgroups._write
    refusals: list[str] = []

    def write(path: str, value: str) -> None:
        if path == f"{made_v2}/cgroup.subtree_control" and not refusals:
            refusals.append(path)
            raise OSError(errno.EBUSY, "busy")
        real(path, value)

    (made_v2 / "cgroup.procs").write_text("4711\n")
    monkeypatch.setattr(cgroups, "_write", write)
    cgroups._delegate(str(made_v2))
    assert (made_v2 / "nova-host" / "cgroup.procs").read_text() == "4711"
    assert (made_v2 / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"


def test_version_1_shares_folders_of_controllers_mounted_together(tmp_path: Path) -> None:
    mounts = {"memory": tmp_path / "memory", "cpu": tmp_path / "cpu,cpuacct", "cpuacct": tmp_path / "cpu,cpuacct"}
    mounts["pids"] = tmp_path / "pids"
    groups = GroupsV1({name: str(path) for name, path in mounts.items()}, "n")
    with pytest.raises(OSError):
        groups.create("one")  # these files have no memory.oom_control
    assert groups.leftovers() == [], "what was made before the failure is gone"
    assert not (tmp_path / "memory" / "nova-n" / "one").exists()
    groups.close()
    assert not (tmp_path / "memory" / "nova-n").exists()


def test_nothing_is_limited_without_groups() -> None:
    groups = NoGroups()
    group = groups.create("one")
    assert not groups.hard
    assert group.join_files() == []
    assert group.destroy()


V1 = """25 22 0:20 / /cg/memory rw - cgroup cgroup rw,memory
26 22 0:21 / /cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
27 22 0:22 / /cg/pids rw - cgroup cgroup rw,pids
28 22 0:23 / /cg/unified rw - cgroup2 cgroup2 rw
"""


def test_layout_of_version_1(tmp_path: Path) -> None:
    text = V1.replace("/cg", str(tmp_path))
    for name in ("memory", "cpu,cpuacct", "pids", "unified"):
        (tmp_path / name).mkdir()
    layout = find_layout(text, "0::/\n")
    assert layout.version == 1
    assert dict(layout.mounts) == {
        "memory": f"{tmp_path}/memory",
        "cpu": f"{tmp_path}/cpu,cpuacct",
        "cpuacct": f"{tmp_path}/cpu,cpuacct",
        "pids": f"{tmp_path}/pids",
    }
    assert Layout.of(layout.as_dict()) == layout
    (tmp_path / "memory" / "below").mkdir()
    assert find_layout(text, "0::/\n", "/below").version == 0, "a group named in the settings must be there"


def v2(top: Path) -> str:
    return f"28 22 0:23 / {top} rw - cgroup2 cgroup2 rw\n"


def test_layout_of_version_2(tmp_path: Path) -> None:
    own = v2_folder(tmp_path / "system.slice" / "nova.service")
    v2_folder(tmp_path)
    membership = "0::/system.slice/nova.service\n"
    assert find_layout(v2(tmp_path), membership) == Layout(2, "", (("", str(tmp_path)),)), "root: the top"
    assert find_layout(v2(tmp_path), membership, "system.slice/nova.service").mounts == (("", str(own)),)
    (tmp_path / "cgroup.controllers").write_text("cpu pids")
    lacking = find_layout(v2(tmp_path), membership)
    assert lacking.version == 0
    assert "memory" in lacking.reason


def test_layout_without_anything(tmp_path: Path) -> None:
    assert find_layout("", "0::/\n") == Layout(0, "no control groups are mounted")
