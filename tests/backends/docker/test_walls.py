"""What needs no engine: the filter of system calls as text, and where a container's control group is."""

import json
from pathlib import Path
from typing import Any

import pytest

from nova.domain.function import Limits
from nova.execution.backends.docker.groups import find_group
from nova.execution.backends.docker.seccomp import profile
from nova.execution.backends.sandbox import seccomp
from nova.execution.backends.sandbox.kernel import SUPPORTED_MACHINES

LIMITS = Limits(memory_mb=64, pids=9, vcpus=0.25)


@pytest.mark.parametrize("machine", sorted(SUPPORTED_MACHINES))
def test_a_call_that_the_sandbox_denies_is_denied_by_name(machine: str) -> None:
    rules: list[dict[str, Any]] = json.loads(profile(machine))["syscalls"]
    allowed = {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    denied = {name for rule in rules if rule["action"] == "SCMP_ACT_ERRNO" for name in rule["names"]}
    assert seccomp.denied(machine) <= denied
    assert denied & allowed == set()
    assert {"ptrace", "mount", "bpf", "setns", "unshare", "clone3"} <= denied
    assert {"read", "openat", "execve", "futex", "socket", "clone"} <= allowed


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_a_group_of_version_2(tmp_path: Path) -> None:
    folder = tmp_path / "system.slice" / "docker-1.scope"
    write(folder, memory__max="max", memory__current="4096", pids__current="3", cpu__stat="usage_usec 77\nuser_usec 1")
    write(folder, memory__events="low 0\noom 2\noom_kill 1")
    mounts = f"30 1 0:26 / {tmp_path} rw shared:4 - cgroup2 cgroup2 rw,nsdelegate"
    group = find_group(mounts, "0::/system.slice/docker-1.scope\n")
    assert group is not None
    group.limit(LIMITS)
    names = ("memory.max", "memory.oom.group", "cpu.max", "cpu.weight", "pids.max")
    assert [(folder / name).read_text() for name in names] == [str(64 << 20), "1", "25000 100000", "25", "9"]
    stats = group.stats()
    assert (stats.memory_bytes, stats.cpu_us, stats.pids, stats.oom_kills) == (4096, 77, 3, 1)


@pytest.mark.parametrize("before_mb", [32, 128])
def test_a_group_of_version_1(tmp_path: Path, before_mb: int) -> None:
    """Controllers that are mounted together, and memory with swap beside memory."""
    memory, cpu, pids = (tmp_path / name / "docker" / "1" for name in ("memory", "cpu,cpuacct", "pids"))
    size = str(before_mb << 20)
    write(memory, memory__limit_in_bytes=size, memory__memsw__limit_in_bytes=size, memory__oom_control="oom_kill 0")
    write(memory, memory__usage_in_bytes="8192")
    write(cpu, cpuacct__usage="5000")
    write(pids, pids__current="2")
    lines = [
        f"{30 + at} 1 0:2{at} / {tmp_path / name} rw - cgroup cgroup rw,{name}"
        for at, name in enumerate(("memory", "cpu,cpuacct", "pids"))
    ]
    group = find_group("\n".join(lines), "9:memory:/docker/1\n8:cpu,cpuacct:/docker/1\n7:pids:/docker/1\n0::/\n")
    assert group is not None
    group.limit(LIMITS)
    held = [
        memory / "memory.limit_in_bytes",
        memory / "memory.memsw.limit_in_bytes",
        cpu / "cpu.cfs_quota_us",
        cpu / "cpu.shares",
        pids / "pids.max",
    ]
    assert [file.read_text() for file in held] == [str(64 << 20), str(64 << 20), "25000", "256", "9"]
    stats = group.stats()
    assert (stats.memory_bytes, stats.cpu_us, stats.pids, stats.oom_kills) == (8192, 5, 2, 0)


def test_a_group_that_is_out_of_sight(tmp_path: Path) -> None:
    assert find_group("30 1 0:26 / /nowhere rw - tmpfs tmpfs rw", "0::/\n") is None
    mounts = f"30 1 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw"
    assert find_group(mounts, "0::/../other\n") is None
