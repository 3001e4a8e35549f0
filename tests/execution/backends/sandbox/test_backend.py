"""The life of the backend: templates, claims, ends, failures, and what is left behind (nothing)."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nova.domain.function import Limits, NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.base import Bind, CommandSpec, InstanceSpec, Movable
from nova.execution.backends.sandbox.backend import SandboxBackend
from tests.execution.backends.sandbox import daemon
from tests.execution.backends.sandbox.harness import (
    OFFLINE,
    ROOMY,
    PythonOnly,
    descendants,
    described,
    load,
    options,
    pid_is_alive,
    zygotes,
)

pytestmark = [pytest.mark.anyio, pytest.mark.root]

REPOSITORY = Path(__file__).parents[4]
ECHO = "def handler(event):\n    return event"
ONLINE = NetworkPolicy()
ZYGOTE = 1
"""the launcher's one process that is no instance's"""


async def until(condition: Any, limit_s: float = 10) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def fresh(tmp_path: Path) -> AsyncIterator[SandboxBackend]:
    """A backend of this test's own with two templates."""
    backend = SandboxBackend(options(tmp_path, templates={("python", "3.11"): 2}), PythonOnly())
    await backend.start()
    yield backend
    await backend.close()


def ready(backend: SandboxBackend) -> int:
    return sum(count for count, _ in backend._templates.counts().values())


async def test_sources(fresh: SandboxBackend, tmp_path: Path) -> None:
    """PO11: an instance says whether it came from a template or was booted for the call."""
    await until(lambda: ready(fresh) == 2)
    first = await load(fresh, tmp_path, ECHO, network=ONLINE)
    assert first.instance.source == "template"
    offline = await load(fresh, tmp_path, ECHO, network=OFFLINE)
    assert offline.instance.source == "boot", "no template of that kind was kept"
    await until(lambda: ready(fresh) == 3)
    second = await load(fresh, tmp_path, ECHO, network=OFFLINE)
    assert second.instance.source == "template", "a kind in demand gets templates"
    assert await first.value(1) == await offline.value(1) == await second.value(1) == 1


async def test_many_at_once(fresh: SandboxBackend, tmp_path: Path) -> None:
    functions = await asyncio.gather(*(load(fresh, tmp_path, ECHO, network=ONLINE) for _ in range(12)))
    assert await asyncio.gather(*(function.value(n) for n, function in enumerate(functions))) == list(range(12))
    assert len({function.instance.pid for function in functions}) == 12


async def test_a_claimed_template_has_what_was_asked_for(fresh: SandboxBackend, tmp_path: Path) -> None:
    """PO14: memory, CPU, processes, /tmp and network of the function, not of the template."""
    await until(lambda: ready(fresh) == 2)
    function = await load(
        fresh,
        tmp_path,
        """
        import os
        def handler():
            stat = os.statvfs("/tmp")
            return stat.f_blocks * stat.f_frsize >> 20
        """,
        network=NetworkPolicy(deny_external_access=True),
        limits=Limits(memory_mb=200, vcpus=0.5, pids=17, tmp_mb=20),
    )
    assert function.instance.source == "template"
    assert await function.value() == 20
    group = f"nova-{fresh._options.node}/{function.instance.name}"
    root = Path("/sys/fs/cgroup")
    if (root / "memory").exists():
        found = [
            (root / "memory" / group / "memory.limit_in_bytes").read_text(),
            (root / "cpu" / group / "cpu.cfs_quota_us").read_text(),
            (root / "pids" / group / "pids.max").read_text(),
        ]
        assert [int(text) for text in found] == [200 << 20, 50_000, 17]
    assert function.instance.slot is not None
    assert function.instance.slot.chain is not None


async def test_a_failed_claim_leaves_nothing(fresh: SandboxBackend, tmp_path: Path) -> None:
    """PO14: an instance whose claim failed is destroyed."""
    await until(lambda: ready(fresh) == 2)
    before = descendants(fresh._launcher.pid)
    spec = InstanceSpec("gone", "python", "3.11", tmp_path / "does-not-exist", ROOMY, ONLINE)
    with pytest.raises(NovaError) as refused:
        await fresh.create(spec)
    assert refused.value.code == "capacity"
    assert "No such file" in refused.value.detail
    await until(lambda: ready(fresh) == 2 and len(descendants(fresh._launcher.pid)) == len(before))


async def test_a_cancelled_create_leaves_nothing(fresh: SandboxBackend, tmp_path: Path) -> None:
    """BE1: whoever stops waiting for an instance leaves none behind, whenever it is."""
    await until(lambda: ready(fresh) == 2)
    for delay_ms in range(0, 30, 2):
        spec = InstanceSpec(uuid.uuid4().hex, "python", "3.11", None, ROOMY, OFFLINE)
        creating = asyncio.create_task(fresh.create(spec))
        await asyncio.sleep(delay_ms / 1000)
        creating.cancel()
        try:
            await fresh.stop(await creating, reason="came in time")
        except asyncio.CancelledError:
            continue
    await fresh._templates.close()
    await until(lambda: not fresh._cells._ends and len(descendants(fresh._launcher.pid)) == ZYGOTE)


async def test_an_instance_that_dies_is_noticed(fresh: SandboxBackend, tmp_path: Path) -> None:
    function = await load(fresh, tmp_path, ECHO)
    lost = asyncio.Event()
    function.instance.channel.on_lost(lost.set)
    os.kill(function.instance.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        await lost.wait()
    assert not function.instance.channel.usable
    await function.stop()
    await function.stop()


async def test_a_dead_template_is_replaced(fresh: SandboxBackend, tmp_path: Path) -> None:
    await until(lambda: ready(fresh) == 2)
    victim = next(iter(fresh._templates._shelves.values())).ready[0]
    os.kill(victim.pid, signal.SIGKILL)
    await until(lambda: victim.ended.done() and ready(fresh) == 2)
    function = await load(fresh, tmp_path, ECHO, network=ONLINE)
    assert await function.value("served") == "served"


async def test_a_template_whose_worker_died_is_replaced(fresh: SandboxBackend, tmp_path: Path) -> None:
    """It would fail whoever got it: the function is loaded by that worker."""
    await until(lambda: ready(fresh) == 2)
    templates = list(next(iter(fresh._templates._shelves.values())).ready)
    for victim in templates:
        (worker,) = descendants(victim.pid)
        os.kill(worker, signal.SIGKILL)
    await until(lambda: all(victim.ended.done() for victim in templates) and ready(fresh) == 2)
    function = await load(fresh, tmp_path, ECHO, network=ONLINE)
    assert await function.value("served") == "served"
    await function.stop()


async def test_a_script_takes_the_place_of_a_template_s_worker(fresh: SandboxBackend, tmp_path: Path) -> None:
    """That worker ends while its agent loads the script, and the instance goes on."""
    await until(lambda: ready(fresh) == 2)
    for _ in range(5):
        spec, init = described(tmp_path, "print('by a script')", network=ONLINE)
        instance = await fresh.create(spec)
        assert instance.source == "template"
        await instance.channel.init(replace(init, entry_kind="script"))
        assert instance.channel.usable
        await fresh.stop(instance, reason="test")
        await until(lambda: ready(fresh) == 2)


async def test_the_zygote_is_replaced(fresh: SandboxBackend, tmp_path: Path) -> None:
    """Whoever asks for an instance when it is dead gets one; those that came from it live on, and no stray is left."""
    await until(lambda: ready(fresh) == 2)
    function = await load(fresh, tmp_path, ECHO)
    for _ in range(3):
        await until(lambda: all(count == wanted for count, wanted in fresh._templates.counts().values()))
        os.kill(*zygotes(fresh), signal.SIGKILL)
        offline = await load(fresh, tmp_path, ECHO, network=OFFLINE)
        assert await offline.value("after") == "after"
        await offline.stop()
    assert await function.value("as before") == "as before"
    await function.stop()
    await fresh._templates.close()
    await until(lambda: not fresh._cells._ends and len(descendants(fresh._launcher.pid)) <= ZYGOTE)


async def test_the_launcher_is_replaced(fresh: SandboxBackend, tmp_path: Path) -> None:
    """A killed launcher takes its instances with it; the next create is served by a new one."""
    function = await load(fresh, tmp_path, ECHO)
    old = fresh._launcher.pid
    assert old is not None
    pids = [function.instance.pid, *descendants(function.instance.pid)]
    os.kill(old, signal.SIGKILL)
    await until(lambda: fresh._launcher.pid != old)
    again = await load(fresh, tmp_path, ECHO)
    assert await again.value("back") == "back"
    await until(lambda: not any(pid_is_alive(pid) for pid in pids))
    result = await function.answer()
    assert result.error is not None
    await function.stop()


async def test_cycles_leave_nothing(tmp_path: Path) -> None:
    """BE1: fifty instances later there is no process, descriptor, mount, interface or control group more than before."""
    backend = SandboxBackend(options(tmp_path), PythonOnly())
    await backend.start()
    launcher = backend._launcher.pid
    assert launcher is not None
    assert backend._network is not None
    tag = backend._network.table.removeprefix("nova_")

    def mounts(process: object) -> int:
        lines = Path(f"/proc/{process}/mountinfo").read_text().splitlines()
        return len([line for line in lines if str(tmp_path) in line])

    def things() -> dict[str, Any]:
        return {
            "processes": len(descendants(launcher)),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "launcher descriptors": len(os.listdir(f"/proc/{launcher}/fd")),
            "mounts": mounts("self"),
            "launcher mounts": mounts(launcher),
            "interfaces": len([name for _, name in socket.if_nameindex() if tag in name]),
            "groups": groups(backend._options.node),
        }

    async def cycle(network: NetworkPolicy) -> None:
        function = await load(backend, tmp_path, ECHO, network=network)
        assert await function.value(1) == 1
        await function.stop()

    async def settle() -> None:
        """No template is kept, none is being made, and everything of the last one is gone."""
        await backend._templates._background.close()
        for shelf in backend._templates._shelves.values():
            while shelf.ready:
                await backend._cells.end(shelf.ready.pop())
        await until(lambda: not backend._cells._ends and not groups(backend._options.node))
        await backend._templates.start()

    for network in (OFFLINE, ONLINE):
        await cycle(network)
    await settle()
    before = things()
    for number in range(50):
        await cycle(ONLINE if number % 2 else OFFLINE)
    await settle()
    after = things()
    # Ways out are kept for the next instance, at most one for each that was alive at once.
    # How many that is, is a matter of speed; one lost with each cycle would be fifty.
    assert after.pop("interfaces") <= before.pop("interfaces") + 20
    assert after.pop("descriptors") <= before.pop("descriptors") + 20
    assert after == before
    launcher = backend._launcher.pid
    own = {launcher, *descendants(launcher)}
    await backend.close()
    assert not own & descendants(os.getpid())
    assert not [name for _, name in socket.if_nameindex() if tag in name]


def groups(node: str) -> list[str]:
    """The control groups that exist for a node, in every hierarchy."""
    return sorted(str(path) for path in Path("/sys/fs/cgroup").glob(f"*/nova-{node}/*") if path.is_dir())


async def test_a_killed_daemon_leaves_nothing(tmp_path: Path) -> None:
    """AG27, BE2: after SIGKILL to the daemon no guest lives on, and a new daemon of that name starts clean."""
    node = f"test-{uuid.uuid4().hex[:8]}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", daemon.__name__, str(tmp_path), node, stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert process.stdout is not None
    report = json.loads(await process.stdout.readline())
    assert len(report["pids"]) >= 1 + 3 * 2 + 1
    process.kill()
    await process.wait()
    await until(lambda: not any(pid_is_alive(pid) for pid in report["pids"]), 20)
    await until(lambda: not groups(node), 20)
    backend = SandboxBackend(options(tmp_path, node=node), PythonOnly())
    await backend.start()
    function = await load(backend, tmp_path, ECHO, network=ONLINE)
    assert await function.value("again") == "again"
    await backend.close()


async def test_leftover_groups_are_swept(tmp_path: Path) -> None:
    """BE2: processes and groups of a daemon and a launcher that were both killed are gone after the next start."""
    if not Path("/sys/fs/cgroup/memory").exists():
        pytest.skip("control groups of version 1 only")
    node = f"test-{uuid.uuid4().hex[:8]}"
    folder = Path(f"/sys/fs/cgroup/memory/nova-{node}/left")
    folder.mkdir(parents=True)
    stray = await asyncio.create_subprocess_exec("sleep", "600")
    (folder / "cgroup.procs").write_text(str(stray.pid))
    backend = SandboxBackend(options(tmp_path, node=node), PythonOnly())
    await backend.start()
    async with asyncio.timeout(20):
        assert await stray.wait() == -signal.SIGKILL
    assert groups(node) == []
    await backend.close()


async def test_reconcile(fresh: SandboxBackend, tmp_path: Path) -> None:
    """Instances that nobody owns are ended; those that are owned, or new, are not."""
    kept = await load(fresh, tmp_path, ECHO)
    lost = await load(fresh, tmp_path, ECHO)
    assert await fresh.reconcile([]) == [], "too young to be judged"
    for function in (kept, lost):
        function.instance.born -= 60
    assert await fresh.reconcile([kept.instance.instance_id]) == [lost.instance.instance_id]
    assert await kept.value(1) == 1
    assert not lost.instance.channel.usable


# -- builds ----------------------------------------------------------------------------------------------------------


def command(
    *argv: str, binds: tuple[Bind, ...] = (), limits: Limits = ROOMY, timeout_s: float = 20, **more: Any
) -> CommandSpec:
    return CommandSpec(argv, {"PATH": "/usr/bin:/bin", **more.pop("env", {})}, "/tmp", binds, limits, timeout_s, **more)


async def test_run(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """A command sees its binds, writes where it may, has the environment given and no network; its output streams."""
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir(mode=0o755)
    output.mkdir()
    (source / "in.txt").write_text("words")
    pieces: list[bytes] = []
    script = (
        'echo "$GREETING"; cat /src/in.txt > /out/copy; echo no > /src/x; ls /sys; id -u; '
        "python3 -c 'import socket; print(socket.socket().connect_ex((\"192.0.2.1\", 80)))'; exit 7"
    )
    result = await sandbox.run(
        command(
            "sh",
            "-c",
            script,
            binds=(Bind(source, "/src"), Bind(output, "/out", read_only=False)),
            env={"GREETING": "hello"},
            output=pieces.append,
        )
    )
    text = b"".join(pieces).decode().splitlines()
    assert result.exit_code == 7
    assert (output / "copy").read_text() == "words"
    assert (output / "copy").stat().st_uid == sandbox.build_uid
    assert text[0] == "hello"
    assert "Read-only file system" in text[1]
    assert "65534" in text
    assert text[-1] == "101", "network unreachable"


async def test_run_ends_what_it_started(sandbox: SandboxBackend) -> None:
    """Background processes do not outlive the command."""
    before = descendants(sandbox._launcher.pid)
    result = await sandbox.run(command("sh", "-c", "sleep 600 & setsid sleep 600 & exit 0"))
    assert result.exit_code == 0
    await until(lambda: not descendants(sandbox._launcher.pid) - before)


async def test_run_times_out(sandbox: SandboxBackend) -> None:
    began = time.monotonic()
    result = await sandbox.run(command("sh", "-c", "trap '' TERM; sleep 600", timeout_s=0.5))
    assert result.timed_out
    assert result.exit_code is None
    assert time.monotonic() - began < 60


async def test_run_out_of_memory(sandbox: SandboxBackend) -> None:
    hoard = "x = [bytearray(b'x' * (16 << 20)) for _ in range(640)]"
    result = await sandbox.run(command("python3", "-c", hoard, limits=Limits(memory_mb=128, vcpus=1)))
    assert result.out_of_memory
    assert result.exit_code is None


async def test_run_of_what_is_not_there(sandbox: SandboxBackend) -> None:
    pieces: list[bytes] = []
    result = await sandbox.run(command("no-such-program", output=pieces.append))
    assert result.exit_code == 127
    assert b"no-such-program" in b"".join(pieces)


def sleepers(launcher: int) -> set[int]:
    """Those of its descendants that sleep; templates are made beside them at any time."""
    found = set()
    for pid in descendants(launcher):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x00600\x00":
                found.add(pid)
    return found


async def test_run_is_cancelled(sandbox: SandboxBackend) -> None:
    launcher = sandbox._launcher.pid
    assert launcher is not None
    running = asyncio.create_task(sandbox.run(command("sleep", "600")))
    await until(lambda: bool(sleepers(launcher)))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: not sleepers(launcher))


async def test_run_is_cancelled_before_it_has_begun(sandbox: SandboxBackend) -> None:
    """The launcher is busy, and begins the command when nobody wants it any more."""
    launcher = sandbox._launcher.pid
    assert launcher is not None
    os.kill(launcher, signal.SIGSTOP)
    try:
        running = asyncio.create_task(sandbox.run(command("sleep", "600")))
        await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.sleep(0.05)
    finally:
        os.kill(launcher, signal.SIGCONT)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await sandbox.run(command("true"))).exit_code == 0
    await until(lambda: not sleepers(launcher))


async def test_run_streams_much(sandbox: SandboxBackend) -> None:
    """Ten megabytes of output arrive whole and in order."""
    size = 0

    def count(piece: bytes) -> None:
        nonlocal size
        size += len(piece)

    result = await sandbox.run(command("sh", "-c", "head -c 10000000 /dev/zero", output=count))
    assert (result.exit_code, size) == (0, 10_000_000)


# -- an ordinary user ------------------------------------------------------------------------------------------------


async def test_as_an_ordinary_user(tmp_path: Path) -> None:
    """Without root the same isolation holds; limits are soft, the network is closed, and both are said."""
    folder = Path("/tmp") / f"nova-ordinary-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        daemon.__name__,
        str(folder),
        "ordinary",
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        user=65534,
        group=65534,
        extra_groups=[],
        env={"PATH": "/usr/bin", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert process.stdout is not None
    line = await process.stdout.readline()
    process.kill()
    await process.wait()
    report = json.loads(line)
    assert report["available"], report["reason"]
    assert report["enforces"]["memory"] == "soft"
    assert report["enforces"]["cpu"] == report["enforces"]["network_rules"] == "no"
    assert report["default"] == "strict"
    assert report["inside"] == {
        "status": {"Uid": "65534", "CapEff": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"},
        "readable": [],
    }
    memory, pids = report["stats"]
    assert memory > 1 << 20
    assert pids == 2
    assert report["forks"] <= 30
    assert report["hoard"] == "MemoryError"
    await until(lambda: not any(pid_is_alive(pid) for pid in report["pids"]), 20)
    shutil.rmtree(folder)


async def test_an_instance_is_kept_to_processors(sandbox: SandboxBackend, tmp_path: Path) -> None:
    function = await load(
        sandbox,
        tmp_path,
        """
        import os
        def handler():
            return sorted(os.sched_getaffinity(0))
        """,
    )
    everywhere = os.sched_getaffinity(0)
    assert isinstance(function.instance, Movable)
    function.instance.keep_to({max(everywhere)})
    assert await function.value() == [max(everywhere)]
    function.instance.keep_to(everywhere)
    assert await function.value() == sorted(everywhere)
    await function.stop()
    function.instance.keep_to(everywhere)  # harmless
