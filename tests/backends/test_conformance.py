"""What every backend does in the same way, tried on the real thing. What one cannot do, it has to refuse by name.

Each test proves one capability; ``docs/backends.md`` shows what came of them (``scripts/backends_table.py``).
"""

import asyncio
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nova.domain.function import EgressRule, NetworkPolicy
from nova.domain.needs import Needs
from nova.errors import NovaError
from nova.execution.backends.advertised import AdvertisedBackends
from nova.execution.backends.base import (
    RESOURCES,
    STRENGTH,
    Backend,
    Capabilities,
    InitFailed,
    LayerMount,
    Snapshotter,
    VolumeMount,
)
from nova.execution.channel_reload import ReloadFailed
from nova.execution.volume_files import VolumeFiles, obstacle
from tests.backends import daemon
from tests.backends.cases import Case
from tests.backends.harness import MEMORY_MB, OFFLINE, PIDS, TIGHT, TMP_MB, Function, Maker
from tests.execution.backends.sandbox.world import World, world
from tests.execution.sinks import Reader

pytestmark = pytest.mark.anyio

REPOSITORY = Path(__file__).parents[2]
Found = Callable[[str, str], None]
AT_ONCE = 5
SLOW_S = 1.0
"""A backend that takes longer for an instance is asked for fewer of them."""


def proves(name: str) -> pytest.MarkDecorator:
    return pytest.mark.capability(name)


async def until(condition: Callable[[], Any], limit_s: float = 20) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.02)


async def refusal(backend: Backend, needs: Needs) -> str:
    """The words with which a deploy is refused."""
    router = AdvertisedBackends(default="auto", default_isolation="egress-only", strict_limits=False)
    router.learn({backend.name: await backend.capabilities()})
    with pytest.raises(NovaError) as refused:
        await router.check(backend.name, needs)
    assert refused.value.code == "unsupported"
    assert backend.name in refused.value.detail
    return refused.value.detail


@proves("capabilities")
async def test_capabilities(maker: Maker, capabilities: Capabilities, found: Found) -> None:
    """Everything is said, and what is claimed exists."""
    assert set(capabilities.enforces) == set(RESOURCES)
    assert capabilities.enforces["user"] == capabilities.enforces["read_only_root"] == "hard"
    assert capabilities.runtimes is None or maker.case.runtime in capabilities.runtimes
    assert capabilities.snapshot == (
        isinstance(maker.backend, Snapshotter) and not maker.backend.snapshot_obstacle(maker.case.runtime)
    )
    found("passed", f"{capabilities.isolation}, strength {capabilities.strength}")


@proves("invoke")
async def test_invoke(standing: Function, found: Found) -> None:
    """Values, prints, errors and environment pass unchanged; after an error the instance serves on."""
    for value in ({"ä": [1, 2.5, None]}, "x" * 300_000):
        result = await standing.answer({"do": "echo", "value": value})
        assert json.loads(result.output or b"") == value
    assert (result.stdout[:6], result.stderr) == ("said x", "warned\n")
    assert await standing.error("raise", value="no such thing") == "LookupError"
    assert await standing.do("env", name="GREETING") == "hello"
    assert standing.instance.channel.usable
    assert await standing.instance.channel.ping(5)
    began = time.perf_counter()
    for _ in range(20):
        await standing.do("echo", value=1)
    found("passed", f"{(time.perf_counter() - began) / 20 * 1000:.1f} ms a warm call")


@proves("stream")
async def test_stream(standing: Function, found: Found) -> None:
    """Pieces come while the handler still works, and a reader that is full holds it back."""
    reader = Reader()
    running = asyncio.ensure_future(
        standing.answer({"do": "stream", "pieces": 4, "pause": 0.25}, reader=reader, timeout_s=30)
    )
    await reader.until(lambda: reader.pieces)
    assert not running.done()
    assert (await running).error is None
    assert reader.values == [f"piece {number}" for number in range(4)]
    slow = Reader(room=1)
    running = asyncio.ensure_future(standing.answer({"do": "stream", "pieces": 3}, reader=slow))
    await slow.until(lambda: len(slow.pieces) == 1)
    slow.read(10)
    assert (await running).error is None
    assert len(slow.pieces) == 3


@proves("isolation")
async def test_what_stops_an_attacker(case: Case, standing: Function, found: Found) -> None:
    """BE5: nothing of it is done, wherever it runs; the table says what stopped it."""
    stopped: dict[str, str] = await standing.do("attack")
    assert {what for what, outcome in stopped.items() if outcome == "done"} == set()
    found("passed", json.dumps(stopped))


@proves("pids")
async def test_processes(standing: Function, capabilities: Capabilities, maker: Maker, found: Found) -> None:
    """BE4: forks end at the limit; the instance serves on."""
    if capabilities.enforces["pids"] == "no":
        found("refused", await refusal(maker.backend, Needs(maker.case.runtime, TIGHT, OFFLINE)))
        return
    made, stopped = await standing.do("processes", most=4 * PIDS)
    assert (made < PIDS, stopped) == (True, "EAGAIN")
    assert await standing.do("echo", value=1) == 1
    found("passed", f"{stopped} at {PIDS} processes")


@proves("disk")
async def test_disk(standing: Function, capabilities: Capabilities, maker: Maker, found: Found) -> None:
    """BE4: /tmp is full at its size."""
    if capabilities.enforces["disk"] == "no":
        found("refused", await refusal(maker.backend, Needs(maker.case.runtime, TIGHT, OFFLINE)))
        return
    written, stopped = await standing.do("disk", most=4 * TMP_MB)
    assert (written <= TMP_MB, stopped) == (True, "ENOSPC")
    found("passed", f"{stopped} at {TMP_MB} MiB")


@proves("memory")
async def test_memory(standing: Function, capabilities: Capabilities, maker: Maker, found: Found) -> None:
    """BE4: who takes more memory than it may is ended and told why; a neighbour notices nothing."""
    if capabilities.enforces["memory"] == "no":
        found("refused", await refusal(maker.backend, Needs(maker.case.runtime, TIGHT, OFFLINE)))
        return
    hungry = await maker.load()
    try:
        ended = await hungry.error("hoard", mb=2 * MEMORY_MB)
    finally:
        await hungry.stop()
    assert ended in ("Nova.OutOfMemory", "MemoryError")
    assert await standing.do("echo", value=1) == 1
    found("passed", f"{ended} at {MEMORY_MB} MiB")


@proves("endless loop")
async def test_an_endless_loop_is_ended(maker: Maker, standing: Function, found: Found) -> None:
    """The call ends at its deadline, and what ran it is gone."""
    spinning = await maker.load()
    try:
        assert await spinning.error("spin", timeout_s=0.5) == "Nova.Timeout"
        assert await standing.do("echo", value=1) == 1
    finally:
        await spinning.stop()
    assert not spinning.instance.channel.usable


@proves("crash")
async def test_a_crash(maker: Maker, found: Found) -> None:
    """A handler that ends its process ends its call with that error, and whoever owns the instance hears of its end."""
    crashing = await maker.load()
    lost = asyncio.Event()
    crashing.instance.channel.on_lost(lost.set)
    try:
        assert await crashing.error("exit", code=3) == "Nova.ExitError"
        assert not crashing.instance.channel.usable or await crashing.do("echo", value=1) == 1
    finally:
        await crashing.stop()
    async with asyncio.timeout(20):
        await lost.wait()


@proves("stop")
async def test_stop(maker: Maker, found: Found) -> None:
    """A call under way ends with an error, and stopping twice is no trouble; nobody's grandchild lives on."""
    busy = await maker.load()
    await busy.do("orphan")
    call = asyncio.ensure_future(busy.answer({"do": "sleep", "s": 600}, timeout_s=600))
    await asyncio.sleep(0)
    began = time.perf_counter()
    await busy.stop()
    took = time.perf_counter() - began
    await busy.stop()
    error = (await call).error
    assert error is not None
    assert error.type in ("Nova.InstanceLost", "Nova.Cancelled", "Nova.Signal")
    assert not busy.instance.channel.usable
    found("passed", f"{took * 1000:.0f} ms")


@proves("bad code")
async def test_code_that_does_not_load(maker: Maker, found: Found) -> None:
    kept, maker.code = maker.code, maker.artifact("raise LookupError('not today')")
    try:
        with pytest.raises(InitFailed) as failed:
            await maker.load()
    finally:
        maker.code = kept
    assert "not today" in failed.value.error.message


# -- reload and snapshots --------------------------------------------------------------------------------------------


def archive(code: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("main.py")
        info.size = len(code.encode())
        tar.addfile(info, io.BytesIO(code.encode()))
    return out.getvalue()


async def reload(function: Function, code: str) -> None:
    data = archive(code)

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    channel: Any = function.instance.channel
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    await channel.reload(pieces(), digest=digest, size=len(data), handler="main.handler", entry="main.py")


@proves("reload")
async def test_reload(maker: Maker, capabilities: Capabilities, found: Found) -> None:
    """AG12: the instance takes new code, all of it or nothing."""
    if not capabilities.reload:
        function = await maker.load()
        with pytest.raises(ReloadFailed, match=r"Nova\.Unsupported"):
            await reload(function, "def handler(event):\n    return 'new code'")
        assert await function.do("echo", value=1) == 1
        await function.stop()
        found("no", "instances are replaced")
        return
    function = await maker.load()
    try:
        with pytest.raises(ReloadFailed):
            await reload(function, "this is no Python")
        assert await function.do("echo", value=1) == 1
        began = time.perf_counter()
        await reload(function, "def handler(event):\n    return 'new code'")
        took = time.perf_counter() - began
        assert await function.do("echo", value=1) == "new code"
        found("passed", f"{took * 1000:.0f} ms")
    finally:
        await function.stop()


@proves("snapshot")
async def test_snapshot_and_restore(maker: Maker, capabilities: Capabilities, found: Found) -> None:
    """BE9: two instances of one snapshot at once, loaded before, yet each with randomness of its own; a dropped one is gone."""
    if not capabilities.snapshot:
        found("no", _obstacle(maker))
        return
    assert isinstance(maker.backend, Snapshotter)
    key = uuid.uuid4().hex
    began = time.perf_counter()
    loaded = await maker.load()
    boot_s = time.perf_counter() - began
    await maker.keep(key)
    try:
        began = time.perf_counter()
        first = await maker.restore(key)
        restore_s = time.perf_counter() - began
        second = await maker.restore(key)
        assert first is not None
        assert second is not None
        one, two = await asyncio.gather(first.do("loaded"), second.do("loaded"))
        assert one[0] == two[0] != (await loaded.do("loaded"))[0]
        assert one[1] != two[1]
        assert first.instance.source == "snapshot"
        await maker.backend.drop_snapshot(key)
        await maker.backend.drop_snapshot(key)
        assert await maker.restore(key) is None
        assert await first.do("echo", value=1) == 1, "instances outlive the snapshot that they came from"
        found("passed", f"{restore_s * 1000:.0f} ms, where loading takes {boot_s * 1000:.0f} ms")
        for function in (first, second):
            await function.stop()
    finally:
        await maker.backend.drop_snapshot(key)
        await loaded.stop()


def _obstacle(maker: Maker) -> str:
    if isinstance(maker.backend, Snapshotter):
        return maker.backend.snapshot_obstacle(maker.case.runtime)
    return "every instance loads its code"


@proves("template")
async def test_templates(maker: Maker, capabilities: Capabilities, found: Found) -> None:
    """PO11, PO14: a backend that says so makes instances from what stood ready for nobody, with limits of their own; others never
    say so."""
    if not capabilities.template:
        function = await maker.load()
        assert function.instance.source != "template"
        await function.stop()
        found("no", "every instance is made from nothing")
        return
    async with asyncio.timeout(120):
        began = time.perf_counter()
        while (first := await maker.load()).instance.source != "template":
            await first.stop()
            await asyncio.sleep(time.perf_counter() - began)  # what takes long is asked for less often
            began = time.perf_counter()
    second = await maker.load(maker.spec(replace(TIGHT, tmp_mb=TMP_MB // 2)))
    try:
        assert second.instance.source in ("template", "boot")
        one, two = await asyncio.gather(first.do("loaded"), second.do("loaded"))
        assert one[0] != two[0]
        assert one[1] != two[1]
        assert (await first.do("disk", most=4 * TMP_MB))[0] > TMP_MB // 2
        assert (await second.do("disk", most=4 * TMP_MB))[0] <= TMP_MB // 2
    finally:
        await first.stop()
        await second.stop()


# -- layers and volumes ----------------------------------------------------------------------------------------------


@proves("layers")
async def test_layers(maker: Maker, capabilities: Capabilities, found: Found) -> None:
    """A layer's files are there and cannot be changed."""
    if not capabilities.layers:
        found("refused", await refusal(maker.backend, Needs(maker.case.runtime, TIGHT, OFFLINE, layers=True)))
        return
    folders = [_folder(maker.folder, {"name": f"layer {number}"}) for number in range(2)]
    mounts = tuple(LayerMount(folder, f"/layers/{number}") for number, folder in enumerate(folders))
    function = await maker.load(maker.spec(layers=mounts))
    try:
        for number in range(2):
            seen, wrote = await function.do("files", path=f"/layers/{number}", write="mine")
            assert seen == {"name": f"layer {number}"}
            assert wrote in ("EROFS", "EACCES", "EPERM")
    finally:
        await function.stop()


@proves("volumes")
async def test_volumes(maker: Maker, capabilities: Capabilities, found: Found) -> None:
    """BE14: what an instance writes is there for the next one, and only where it may be written."""
    if not capabilities.volumes:
        found("refused", await refusal(maker.backend, Needs(maker.case.runtime, TIGHT, OFFLINE, volumes=True)))
        return
    async with volume(maker.folder) as folder:
        (folder / "before").write_text("text")
        for read_only, names, outcome in ((False, ["before"], "done"), (True, ["before", "mine"], "EROFS")):
            function = await maker.load(maker.spec(mounts=(VolumeMount(folder, "/mnt/data", read_only),)))
            try:
                seen, wrote = await function.do("files", path="/mnt/data", write="mine")
            finally:
                await function.stop()
            assert (sorted(seen), wrote) == (names, outcome)
        assert (folder / "mine").stat().st_uid == 65534, "the volume knows one user, whoever runs the instance"


@asynccontextmanager
async def volume(folder: Path) -> AsyncIterator[Path]:
    """As the platform makes them: a file system of its own."""
    if reason := obstacle():
        pytest.skip(reason)
    files = VolumeFiles(folder / f"volumes-{uuid.uuid4().hex[:8]}")
    try:
        yield await files.mounted("data", 16)
    finally:
        await files.close()


def _folder(beside: Path, files: dict[str, str]) -> Path:
    made = beside / f"folder-{uuid.uuid4().hex[:8]}"
    made.mkdir(mode=0o755)
    for name, text in files.items():
        (made / name).write_text(text)
    return made


# -- the network -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outside() -> Iterator[World]:
    with world() as place:
        yield place


@proves("network")
async def test_network_policies(
    maker: Maker, capabilities: Capabilities, request: pytest.FixtureRequest, found: Found
) -> None:
    """BE3: an allowed connection succeeds and a denied one fails; the host, its neighbours and metadata are out of reach."""
    if capabilities.enforces["network_rules"] == "no":
        anywhere = NetworkPolicy("strict", (EgressRule("10.217.7.2", 8080),))
        found("refused", await refusal(maker.backend, Needs(maker.case.runtime, TIGHT, anywhere)))
        return
    outside: World = request.getfixturevalue("outside")
    rule = NetworkPolicy("strict", (EgressRule(outside.near, 8080),))
    targets = [
        [outside.near, 8080],
        [outside.near, 9090],
        [outside.other, 8080],
        [outside.far, 8080],
        [outside.metadata, 8080],
        [outside.router, 8080],
    ]
    seen: dict[str, list[bool]] = {}
    for name, policy in (("rules", rule), ("egress-only", NetworkPolicy())):
        function = await maker.load(maker.spec(network=policy))
        seen[name] = await function.do("reach", targets=targets)
        await function.stop()
    assert seen == {
        "rules": [True, False, False, False, False, False],
        "egress-only": [True, True, True, True, False, False],
    }
    found("passed", "rules by address and port; metadata and the host never")


# -- what is left ----------------------------------------------------------------------------------------------------


@proves("cycles")
async def test_cycles_leave_nothing(
    case: Case, maker: Maker, capabilities: Capabilities, node: str, found: Found
) -> None:
    """BE1: however many instances come and go, nothing of them stays on the host or in the daemon. What a backend keeps ready
    follows demand, so what counts is whether it goes on growing."""

    async def cycle() -> None:
        function = await maker.load()
        assert await function.do("echo", value=1) == 1
        await function.stop()

    async def cycles(times: int) -> None:
        for begun in range(0, times, at_once):
            await asyncio.gather(*(cycle() for _ in range(min(at_once, times - begun))))
        await _settled(case, node)

    at_once = 1 if capabilities.strength == STRENGTH["qemu-emulated"] else AT_ONCE
    half = case.cycles // 2
    await cycles(half)
    before, descriptors = len(case.leftovers(node)), len(os.listdir("/proc/self/fd"))
    began = time.perf_counter()
    await cycles(half)
    took = time.perf_counter() - began
    assert len(case.leftovers(node)) <= before + half // 5, case.leftovers(node)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + half // 5
    found("passed", f"{case.cycles} cycles, {took / half * 1000:.0f} ms each")


async def _settled(case: Case, node: str) -> None:
    """Wait until what the backend does of its own accord (templates) has come to rest."""
    seen: list[list[str]] = []

    def same() -> bool:
        seen.append(sorted(case.leftovers(node)))
        return seen[-10:] == [seen[-1]] * 10

    await until(same)


@proves("killed daemon")
async def test_a_killed_daemon_leaves_nothing(
    case: Case, maker: Maker, standing: Function, tmp_path: Path, found: Found
) -> None:
    """BE2: after SIGKILL to a daemon its next start removes what is left, and nothing of another daemon's."""
    other = f"dead-{uuid.uuid4().hex[:6]}"
    tmp_path.chmod(0o755)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", daemon.__name__, case.name, str(tmp_path), other, stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert process.stdout is not None
    async with asyncio.timeout(120):
        assert await process.stdout.readline() == b"asleep\n"
    assert case.leftovers(other)
    process.kill()
    await process.wait()
    async with case.backend(tmp_path, other) as backend:
        function = await Maker(case, backend, tmp_path).load()
        assert await function.do("echo", value="again") == "again"
        await function.stop()
    await until(lambda: case.leftovers(other) == [])
    assert await standing.do("echo", value=1) == 1


@proves("failed create")
async def test_a_failed_or_cancelled_create_leaves_nothing(case: Case, maker: Maker, node: str, found: Found) -> None:
    """BE1: whoever stops waiting for an instance leaves none behind, whenever it is."""
    await _settled(case, node)
    before = len(case.leftovers(node))
    boot = time.perf_counter()
    await (await maker.load()).stop()
    boot = time.perf_counter() - boot
    for part in (0.0, 0.1, 0.3, 0.6, 0.9) if boot < SLOW_S else (0.2, 0.7):
        creating = asyncio.create_task(maker.backend.create(maker.spec()))
        await asyncio.wait({creating}, timeout=part * boot)
        creating.cancel()
        try:
            await maker.backend.stop(await creating, reason="came in time")
        except asyncio.CancelledError:
            continue
    await until(lambda: len(case.leftovers(node)) <= before)
