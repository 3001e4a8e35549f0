"""Memory, processes, disk and CPU: each function is stopped at its own limit, and a neighbour goes on."""

import asyncio
import time
from pathlib import Path

import pytest

from nova.domain.function import Limits, NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.base import InstanceSpec
from nova.execution.backends.sandbox.backend import SandboxBackend
from tests.execution.backends.sandbox.harness import OFFLINE, ROOMY, load

pytestmark = [pytest.mark.anyio, pytest.mark.root]


async def test_memory(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """BE4: a handler that takes 10 GB is ended at its limit and the cause is named; a neighbour goes on."""
    neighbour = await load(sandbox, tmp_path, "def handler():\n    return 'alive'")
    function = await load(
        sandbox,
        tmp_path,
        """
        def handler():
            hoard = [bytearray(b"x" * (16 << 20)) for _ in range(640)]
            return len(hoard)
        """,
        limits=Limits(memory_mb=128, vcpus=1),
    )
    result = await function.answer()
    assert result.error is not None
    assert result.error.type == "Nova.OutOfMemory"
    assert "128 MB" in result.error.message
    assert not function.instance.channel.usable
    assert (await function.instance.ended).out_of_memory
    assert await neighbour.value() == "alive"
    await function.stop()
    await neighbour.stop()


async def test_memory_of_a_child(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """The group dies as one: a subprocess that runs out of memory takes its instance with it."""
    function = await load(
        sandbox,
        tmp_path,
        """
        import os
        def handler():
            pid = os.fork()
            if pid == 0:
                hoard = [bytearray(b"x" * (16 << 20)) for _ in range(640)]
                os._exit(len(hoard))
            return os.waitpid(pid, 0)[1]
        """,
        limits=Limits(memory_mb=128, vcpus=1),
    )
    result = await function.answer()
    assert result.error is not None
    assert result.error.type == "Nova.OutOfMemory"
    await function.stop()


async def test_fork_bomb(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """BE4: forks end at the pids limit with an error inside, and a neighbour goes on."""
    neighbour = await load(sandbox, tmp_path, "def handler():\n    return 'alive'")
    function = await load(
        sandbox,
        tmp_path,
        """
        import errno, os, time
        def handler():
            made = 0
            while made < 1000:
                try:
                    pid = os.fork()
                except OSError as error:
                    return {"made": made, "error": errno.errorcode[error.errno]}
                if pid == 0:
                    time.sleep(600)
                made += 1
        """,
        limits=Limits(memory_mb=512, vcpus=1, pids=40),
    )
    seen = await function.value()
    assert seen["error"] == "EAGAIN"
    assert 30 <= seen["made"] < 40
    assert await neighbour.value() == "alive"
    stats = await sandbox.stats(function.instance)
    assert stats.pids == 40
    await function.stop()
    await neighbour.stop()


@pytest.mark.parametrize("tmp_mb", [16, 64, 100])
async def test_tmp(sandbox: SandboxBackend, tmp_path: Path, tmp_mb: int) -> None:
    """BE4: /tmp is full at its limit."""
    function = await load(
        sandbox,
        tmp_path,
        """
        import errno
        def handler():
            written = 0
            with open("/tmp/big", "wb", buffering=0) as file:
                try:
                    while written < 1 << 30:
                        written += file.write(bytes(1 << 20))
                except OSError as error:
                    return {"mb": written >> 20, "error": errno.errorcode[error.errno]}
        """,
        limits=Limits(memory_mb=512, vcpus=1, tmp_mb=tmp_mb),
    )
    assert await function.value() == {"mb": tmp_mb, "error": "ENOSPC"}
    await function.stop()


async def test_many_small_files(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """Empty files end as well: each costs kernel memory that no byte limit counts."""
    function = await load(
        sandbox,
        tmp_path,
        """
        import errno
        def handler():
            for number in range(1_000_000):
                try:
                    open(f"/tmp/{number}", "w").close()
                except OSError as error:
                    return errno.errorcode[error.errno]
        """,
        limits=Limits(memory_mb=512, vcpus=2, tmp_mb=8),
    )
    assert await function.value() == "ENOSPC"
    await function.stop()


async def test_cpu(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """BE4: however many processes spin, together they get the instance's quota and no more."""
    function = await load(
        sandbox,
        tmp_path,
        """
        import os, time
        def handler():
            end = time.monotonic() + 1
            started = [os.fork() for _ in range(2)]
            while time.monotonic() < end:
                pass
            if 0 in started:
                os._exit(0)
            for pid in started:
                os.waitpid(pid, 0)
        """,
        limits=Limits(memory_mb=256, vcpus=0.2),
    )
    before = (await sandbox.stats(function.instance)).cpu_us
    await function.value()
    used = (await sandbox.stats(function.instance)).cpu_us - before
    assert used < 0.6e6, "0.2 of a CPU for 1 s, with slack for the periods that were begun"
    await function.stop()


async def test_cpu_shares(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """BE4: where two functions want the same processor, each gets in proportion to its memory."""
    spin = """
        import os, time
        def handler(begin):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            time.sleep(max(0, begin - time.monotonic()))
            while time.monotonic() < begin + 1:
                pass
        """
    small = await load(sandbox, tmp_path, spin, limits=Limits(memory_mb=177))
    large = await load(sandbox, tmp_path, spin, limits=Limits(memory_mb=1769))
    both = (small, large)
    little = much = 0.0
    for _ in range(5):  # others may want this processor, too, or one of the two come late to it
        before = [(await sandbox.stats(each.instance)).cpu_us for each in both]
        begin = time.monotonic() + 0.2
        await asyncio.gather(*(each.value(begin) for each in both))
        after = [(await sandbox.stats(each.instance)).cpu_us for each in both]
        little, much = (end - start for start, end in zip(before, after, strict=True))
        if much > 3 * little:
            break
    assert much > 3 * little, "ten times the memory"
    for each in both:
        await each.stop()


async def test_stats(sandbox: SandboxBackend, tmp_path: Path) -> None:
    function = await load(
        sandbox, tmp_path, "kept = []\ndef handler():\n    kept.append(bytearray(b'x' * (50 << 20)))", limits=ROOMY
    )
    before = await sandbox.stats(function.instance)
    await function.value()
    after = await sandbox.stats(function.instance)
    assert before.pids == after.pids == 2, "the agent and its worker"
    assert after.memory_bytes - before.memory_bytes > 45 << 20
    assert after.cpu_us > before.cpu_us
    assert after.oom_kills == 0
    await function.stop()
    assert (await sandbox.stats(function.instance)).pids == 0


async def test_refusals_name_the_field(tmp_path: Path) -> None:
    """BE6: what cannot be enforced is refused by name."""
    from tests.execution.backends.sandbox.harness import PythonOnly, options

    backend = SandboxBackend(options(tmp_path, subnet="172.31.0.0/16"), PythonOnly())
    backend._privileged = False
    backend._reason = ""
    wants_network = InstanceSpec("i", "python", "3.11", None, ROOMY, NetworkPolicy())
    with pytest.raises(NovaError, match=r"network_policy\.isolation_mode") as refusal:
        await backend.create(wants_network)
    assert refusal.value.code == "unsupported"
    wants_cpu = InstanceSpec("i", "python", "3.11", None, Limits(vcpus=1), OFFLINE)
    with pytest.raises(NovaError, match="vcpus"):
        await backend.create(wants_cpu)
    assert backend.default_network().offline
