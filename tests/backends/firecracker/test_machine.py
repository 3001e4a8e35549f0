"""One machine of the real Firecracker in the real jailer, with a kernel of our own."""

import asyncio
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nova.errors import NovaError
from nova.execution.backends.firecracker.api import (
    BootSource,
    Drive,
    MachineConfig,
    MachineSetup,
    RateLimiter,
    TokenBucket,
    Vsock,
)
from nova.execution.backends.firecracker.jail import VSOCK, Jail, distrust
from nova.execution.backends.firecracker.machine import Machine
from nova.execution.backends.firecracker.vsock import dial
from nova.execution.backends.sandbox.cgroup_layout import detect_layout
from nova.execution.backends.sandbox.cgroups import Group, Groups
from tests.backends.firecracker import programs

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("firecracker_here")]

UID = 310_000


@pytest.fixture(scope="module")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return programs.kernel(tmp_path_factory.mktemp("kernel"))


@pytest.fixture
def groups() -> Iterator[Groups]:
    opened = detect_layout().open(f"fctest{os.getpid()}")
    yield opened
    opened.sweep()
    opened.close()


@pytest.fixture
def base() -> Iterator[Path]:
    """Short, for the paths of sockets."""
    path = Path(f"/tmp/nova-fc-{secrets.token_hex(4)}")
    yield path
    assert not list(path.glob("*/*")), "a jail was left behind"
    for place in (path / "firecracker", path):
        if place.exists():
            place.rmdir()


@asynccontextmanager
async def machine(base: Path, groups: Groups, vmlinux: Path, number: int = 1) -> AsyncIterator[tuple[Machine, Group]]:
    jail = Jail(base, f"t-{number}", programs.programs(), UID + number, UID)
    jail.make()
    jail.share(vmlinux, "vmlinux")
    group = groups.create(jail.name)
    group.limit(64 << 20, 1, 1, 64)
    try:
        made = await Machine.launch(jail, "/proc/self/ns/net", group)
        try:
            yield made, group
        finally:
            await made.end()
    finally:
        assert group.destroy()
        jail.remove()


SETUP = MachineSetup(BootSource("vmlinux", "quiet"), MachineConfig(1, 32), (), Vsock(3, VSOCK))


async def letters(made: Machine, count: int) -> str:
    """What the kernel has printed, once it is so much. Firecracker's log may come between any two of its bytes."""
    async with asyncio.timeout(10):
        while len(found := re.findall(rb"(?m)^([a-z])\r?$", made.console.tail())) < count:
            await asyncio.sleep(0.01)
    return b"".join(found).decode()


async def test_a_machine_runs_jailed_as_its_own_user_in_its_group(base: Path, groups: Groups, vmlinux: Path) -> None:
    """BE7."""
    async with machine(base, groups, vmlinux) as (made, group):
        await made.api.configure(SETUP)
        await made.api.start()
        assert await letters(made, 1)
        status = Path(f"/proc/{made.pid}/status").read_text()
        assert f"Uid:\t{UID + 1}\t{UID + 1}\t{UID + 1}" in status
        assert re.search(r"CapEff:\t0+\n", status)
        assert "Seccomp:\t2" in status
        assert "vmlinux" in os.listdir(f"/proc/{made.pid}/root")
        assert "etc" not in os.listdir(f"/proc/{made.pid}/root")
        assert group.usage().pids >= 2
        assert group.usage().memory_bytes > 1 << 17
        command = Path(f"/proc/{made.pid}/cmdline").read_bytes()
        assert b"--api-sock" in command
    assert not Path(f"/proc/{made.pid}").exists()


@pytest.mark.host_side("firecracker", "snapshot")
async def test_a_machine_goes_on_in_another_process_where_its_snapshot_was_taken(
    base: Path, groups: Groups, vmlinux: Path
) -> None:
    async with machine(base, groups, vmlinux, 1) as (first, _):
        await first.api.configure(SETUP)
        await first.api.start()
        await letters(first, 3)
        await first.api.pause()
        assert await first.api.state() == "Paused"
        await first.api.create_snapshot("state", "memory")
        seen = await letters(first, 3)
        async with machine(base, groups, vmlinux, 2) as (second, _), machine(base, groups, vmlinux, 3) as (third, _):
            for clone in (second, third):
                for name in ("state", "memory"):
                    (first.jail.root / name).chmod(0o644)
                    clone.jail.share(first.jail.root / name, name)
                await clone.api.load_snapshot("state", "memory", resume=True)
            for clone in (second, third):
                # a line of the log may have come between a letter and its end, so one more or less may be seen
                assert seen[-1] <= (await letters(clone, 2))[0] <= chr(ord(seen[-1]) + 2)
            for clone in (second, third):
                assert "hello" not in clone.console.tail().decode()
                assert (clone.jail.root / VSOCK).exists()


async def test_what_firecracker_refuses_is_said_in_its_words(base: Path, groups: Groups, vmlinux: Path) -> None:
    async with machine(base, groups, vmlinux) as (made, _):
        with pytest.raises(NovaError, match=r"PUT /machine-config.*(vcpu|vCPU)"):
            await made.api.configure(MachineSetup(SETUP.boot, MachineConfig(99, 32), (), SETUP.vsock))
        with pytest.raises(NovaError, match=r"PUT /actions.*(kernel|boot source)"):
            await made.api.start()
        limited = RateLimiter(TokenBucket.per_second(1 << 20), TokenBucket.per_second(100))
        lost = Drive("rootfs", "nowhere", is_root_device=True, is_read_only=True, rate_limiter=limited)
        with pytest.raises(NovaError, match=r"PUT /drives/rootfs.*nowhere"):
            await made.api.configure(MachineSetup(SETUP.boot, SETUP.machine, (lost,), SETUP.vsock))


async def test_a_machine_that_does_not_start_says_why_and_is_gone(base: Path, groups: Groups, vmlinux: Path) -> None:
    jail = Jail(base, "t-9", programs.programs(), UID, UID)
    jail.make()
    group = groups.create(jail.name)
    with pytest.raises(NovaError, match=r"firecracker ended: .*[Nn]o such file"):
        await Machine.launch(jail, "/proc/self/ns/nothing", group)
    assert group.destroy()
    jail.remove()


async def test_a_machine_whose_agent_is_not_there_refuses_connections(
    base: Path, groups: Groups, vmlinux: Path
) -> None:
    async with machine(base, groups, vmlinux) as (made, _):
        await made.api.configure(SETUP)
        await made.api.start()
        connecting = asyncio.ensure_future(dial(made.jail.root / VSOCK, 9999))
        assert await letters(made, 1)
        made.kill()
        with pytest.raises(ConnectionError):
            await connecting


async def test_files_of_another_file_system_are_mounted_and_unmounted(
    base: Path, groups: Groups, vmlinux: Path
) -> None:
    elsewhere = Path("/dev/shm") / base.name
    elsewhere.write_bytes(vmlinux.read_bytes())
    assert elsewhere.stat().st_dev != Path("/tmp").stat().st_dev
    async with machine(base, groups, elsewhere) as (made, _):
        await made.api.configure(SETUP)
        await made.api.start()
        assert await letters(made, 1)
        shared = made.jail.root / "vmlinux"
        assert os.path.ismount(shared)
        with pytest.raises(OSError, match="Read-only"):
            shared.write_bytes(b"")
    assert elsewhere.read_bytes() == vmlinux.read_bytes()
    elsewhere.unlink()


def test_a_folder_that_others_can_change_is_no_place_for_jails(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert distrust(tmp_path / "jails") == ""
    tmp_path.chmod(0o777)
    assert "root's own" in distrust(tmp_path / "jails")
    tmp_path.chmod(0o755)
    (tmp_path / "link").symlink_to("/tmp")
    assert "root's own" in distrust(tmp_path / "link" / "jails")
