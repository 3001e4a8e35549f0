"""What is QEMU's own: how machines are started, kept and taken away. The suite beside it holds them to what all backends do.

A boot without KVM takes some seconds, going on from a snapshot a quarter of one: so one machine is saved for all tests here.
"""

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nova.errors import NovaError
from nova.execution.backends.base import InitSpec, LayerMount, VolumeMount
from nova.execution.backends.qemu.backend import STATE, QemuBackend, QemuVm
from nova.execution.backends.vm import snapshots
from tests.backends.cases import Case
from tests.backends.harness import TIGHT, Function, Maker, write_code
from tests.backends.qemu import case as qemu_case
from tests.backends.qemu import ground

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(bool(ground.missing()), reason=ground.missing()),
]

KEY = "kept"
SECRET = secrets.token_hex(16)
CODE = """
import os, time, uuid

LOADED = uuid.uuid4().hex


def handler(event):
    if event["do"] == "about":
        with open("/proc/sys/kernel/random/uuid") as file:
            kernel = file.read()
        return {"loaded": LOADED, "kernel": kernel, "random": os.urandom(16).hex(), "now": time.time(), "env": dict(os.environ)}
    if event["do"] == "sleep":
        time.sleep(event["s"])
"""


@dataclass
class Kept:
    """A backend that has one function in a snapshot."""

    maker: Maker
    backend: QemuBackend
    folder: Path
    node: str

    def init(self) -> InitSpec:
        return self.maker.init(env={"SECRET": SECRET})

    async def restore(self) -> Function:
        instance = await self.backend.restore(KEY, self.maker.spec())
        assert instance is not None
        await instance.channel.init(self.init())
        return Function(self.backend, instance)

    def copy(self, key: str) -> snapshots.Kept:
        """The snapshot once more, with files of its own."""
        store = self.backend._kept
        saved = store._kept[KEY]
        work = store.workshop()
        for path in saved.files:
            shutil.copyfile(path, work / path.name)
        store.keep(key, work, name=saved.name, token=saved.token, fingerprint=saved.fingerprint)
        return store._kept[key]

    def left(self) -> list[str]:
        return ground.processes(self.node) + ground.groups(self.node) + ground.files(self.folder)


@pytest.fixture(scope="module")
async def kept(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kept]:
    folder = tmp_path_factory.mktemp("qemu")
    node = f"q-{secrets.token_hex(3)}"
    case: Case = qemu_case.Case()
    async with case.backend(folder, node) as backend:
        assert isinstance(backend, QemuBackend)
        maker = Maker(case, backend, folder, write_code(CODE, folder))
        made = Kept(maker, backend, folder, node)
        await backend.snapshot(KEY, maker.spec(), made.init())
        assert made.left() == [], "the machine that was saved is gone"
        yield made
    assert made.left() == []
    assert list((folder / "snapshots").glob("*")) == []


def vm(function: Function) -> QemuVm:
    assert isinstance(function.instance, QemuVm)
    return function.instance


async def until(condition: Any, limit_s: float = 10) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.02)


async def test_two_machines_from_one_snapshot_are_not_the_same(kept: Kept) -> None:
    """PO13: loaded once, yet each with random numbers of its own and the right time."""
    functions = await asyncio.gather(kept.restore(), kept.restore())
    first, second = await asyncio.gather(*(function.do("about") for function in functions))
    assert first["loaded"] == second["loaded"]
    assert first["kernel"] != second["kernel"]
    assert first["random"] != second["random"]
    assert abs(first["now"] - time.time()) < 5
    assert first["env"]["SECRET"] == SECRET
    assert {vm(function).source for function in functions} == {"snapshot"}
    await asyncio.gather(*(function.stop() for function in functions))
    assert kept.left() == []


async def test_a_machine_is_nobody_on_the_host(kept: Kept) -> None:
    """BE13, PO3: a user of its own without capabilities, system calls filtered, in its control group; nothing secret in its
    command line or in files that others can read."""
    function = await kept.restore()
    process = Path(f"/proc/{vm(function).machine.pid}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    if os.geteuid() == 0:
        assert 402_000 <= int(status["Uid"].split()[0]) < 403_000
        assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {"0" * 16}
    line = (process / "cmdline").read_bytes()
    assert SECRET.encode() not in line
    assert vm(function).instance_id in (process / "cgroup").read_text() or not ground.groups(kept.node)
    usage = await kept.backend.stats(function.instance)
    assert usage.memory_bytes < (TIGHT.memory_mb + 64 + 192) << 20
    state = next((kept.folder / "snapshots" / kept.node).glob("*/state"))
    assert (state.stat().st_mode & 0o777, state.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    await function.stop()
    assert await kept.backend.stats(function.instance) == type(usage)()


async def test_a_machine_that_is_killed(kept: Kept) -> None:
    """Its call ends at once with an error, and stopping it takes away what it had."""
    function = await kept.restore()
    call = asyncio.ensure_future(function.answer({"do": "sleep", "s": 600}, timeout_s=600))
    await asyncio.sleep(0)
    vm(function).machine.kill()
    error = (await call).error
    assert error is not None
    assert error.type == "Nova.InstanceLost"
    assert not vm(function).channel.usable
    await function.stop()
    await function.stop()
    assert kept.left() == []


async def test_a_snapshot_whose_files_changed_is_of_no_use(kept: Kept) -> None:
    """BE9: no machine goes on from a state with other drives than it knew."""
    backend, key = kept.backend, "changed"
    other = kept.copy(key)
    assert await backend.snapshot_memory(key) > 0
    (other.folder / "code.ext4").unlink()
    (other.folder / "code.ext4").write_bytes(b"another")
    assert await backend.restore(key, kept.maker.spec()) is None
    assert not other.folder.exists()
    assert await backend.snapshot_memory(key) == 0


async def test_whatever_fails_on_the_way_leaves_nothing(kept: Kept, tmp_path: Path) -> None:
    """BE1: at every step of making a machine, and of going on from a snapshot."""
    with_socket = write_code("", tmp_path)
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(str(with_socket / "odd"))
    node = f"f-{secrets.token_hex(3)}"
    broken: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({}, {"code": with_socket}, "odd"),
        ({"binary": "/bin/false"}, {}, "QEMU does not start"),
        ({"boot_timeout_s": 0.05}, {}, "within 0.05 s"),
    ]
    for options, wanted, words in broken:
        backend = ground.backend(tmp_path, node, **options)
        await backend.start()
        with pytest.raises(NovaError, match=words):
            await backend.create(replace(kept.maker.spec(), **wanted))
        assert ground.processes(node) + ground.groups(node) + ground.files(tmp_path) == []
        await backend.close()


async def test_what_cannot_be_held_is_refused_by_name(kept: Kept) -> None:
    """BE6"""
    spec = kept.maker.spec()
    folder = kept.folder
    layers = tuple(LayerMount(folder, f"/layers/{number}") for number in range(7))
    for changes, field in (
        ({"mounts": (VolumeMount(folder, "/mnt/data", True),)}, "mounts"),
        ({"layers": layers}, "layers"),
    ):
        changed: dict[str, Any] = changes
        with pytest.raises(NovaError, match=field) as refused:
            await kept.backend.create(replace(spec, **changed))
        assert refused.value.code == "unsupported"
    assert kept.backend.snapshot_obstacle("node") != ""
    assert kept.left() == []


async def test_a_snapshot_that_cannot_be_read_is_of_no_use(kept: Kept) -> None:
    """QEMU ends of it; the caller boots instead, and nothing stays."""
    key = "truncated"
    saved = kept.copy(key)
    os.truncate(saved.folder / STATE, 1 << 20)
    kept.backend._kept._kept[key] = replace(saved, stamps=snapshots._stamps(saved.folder))
    assert await kept.backend.restore(key, kept.maker.spec()) is None
    await kept.backend.drop_snapshot(key)
    assert kept.left() == []
    assert len(list((kept.folder / "snapshots" / kept.node).iterdir())) == 1


async def test_machines_die_with_their_daemon(kept: Kept, tmp_path: Path) -> None:
    """A process that starts one and is killed takes it along, before it has said anything."""
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from tests.backends.qemu import ground\n"
        "from tests.backends.cases import case\n"
        "from tests.backends.harness import Maker\n"
        "async def main():\n"
        "    backend = ground.backend(Path(sys.argv[1]), sys.argv[2])\n"
        "    await backend.start()\n"
        "    await backend.create(Maker(case('qemu'), backend, Path(sys.argv[1])).spec())\n"
        "asyncio.run(main())\n"
    )
    node = f"d-{secrets.token_hex(3)}"
    daemon = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        str(tmp_path),
        node,
        cwd=Path(__file__).parents[3],
        stderr=subprocess.DEVNULL,
    )
    try:
        await until(lambda: ground.processes(node), 30)
    finally:
        daemon.kill()
        await daemon.wait()
    await until(lambda: not ground.processes(node))
    backend = ground.backend(tmp_path, node)
    await backend.start()
    assert ground.groups(node) + ground.files(tmp_path) == []
    await backend.close()
