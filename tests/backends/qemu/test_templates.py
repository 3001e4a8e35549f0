"""Cold starts from a machine that was booted for nobody, with real guests: each becomes its function's own, and nothing of it
is another's. Machines are emulated here, so one template serves all tests but the last."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nova.execution.backends.base import InstanceSpec, LayerMount
from nova.execution.backends.qemu.backend import QemuBackend, QemuVm
from nova.execution.images import ImageFile
from tests.backends.harness import GUEST, PIDS, TIGHT, Function, Maker, write_code
from tests.backends.qemu import case as qemu_case
from tests.backends.qemu import ground

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(bool(ground.missing()), reason=ground.missing()),
]

CODE = """
import os, random, ssl, time, uuid

MINE = "MY_NAME"


def handler(event):
    if event["do"] == "write":
        with open("/tmp/mine", "w") as file:
            file.write(MINE)
        return os.listdir("/tmp")
    with open("/proc/sys/kernel/random/uuid") as file:
        kernel = file.read()
    with open("/proc/cmdline") as file:
        told = file.read()
    drawn = [kernel, random.random(), ssl.RAND_bytes(16).hex(), os.urandom(16).hex(), uuid.uuid4().hex]
    tmp = os.statvfs("/tmp")
    return {
        "name": MINE,
        "drawn": drawn,
        "told": told,
        "now": time.time(),
        "token": os.environ["NOVA_API_TOKEN"],
        "stream": os.environ["AWS_LAMBDA_LOG_STREAM_NAME"],
        "code": sorted(os.listdir("/code")),
        "tmp": os.listdir("/tmp"),
        "tmp_mb": tmp.f_blocks * tmp.f_frsize >> 20,
        "layer": sorted(os.listdir("/layers/0")),
    }
"""


@dataclass
class Stocked:
    """A backend that keeps templates."""

    maker: Maker
    backend: QemuBackend
    folder: Path
    node: str

    def spec(self, name: str, code: str = CODE, **limits: int) -> InstanceSpec:
        """Of a function with one layer."""
        layer = LayerMount(write_code("", self.folder, f"layer of {name}"), "/layers/0")
        code = code.replace("MY_NAME", name)
        spec = self.maker.spec(replace(TIGHT, **limits), layers=(layer,))
        return replace(spec, code=write_code(code, self.folder))

    def templates(self) -> list[Path]:
        return [path for path in self.folder.glob("snapshots/*.templates/*") if not path.name.startswith("new-")]

    def left(self) -> list[str]:
        return ground.processes(self.node) + ground.groups(self.node) + ground.files(self.folder)

    async def rest(self, count: int) -> None:
        """Until there are so many templates, and nothing is under way."""
        async with asyncio.timeout(120):
            while len(self.templates()) != count or self.left():
                await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
async def stocked(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stocked]:
    folder = tmp_path_factory.mktemp("templates")
    node = f"t-{secrets.token_hex(3)}"
    backend = ground.backend(folder, node, templates=True)
    await backend.start()
    case = qemu_case.Case()
    made = Stocked(Maker(case, backend, folder, write_code("", folder)), backend, folder, node)
    yield made
    await backend.close()
    assert made.left() == []
    assert list(folder.glob("snapshots/*")) == []


def vm(function: Function) -> QemuVm:
    assert isinstance(function.instance, QemuVm)
    return function.instance


async def test_functions_from_one_template_share_nothing(stocked: Stocked) -> None:
    """PO13, PO14: the first boots and the template is made after it. What goes on from it has its function's code, limits and
    layers, a token, a name and random numbers of its own, and the right time."""
    assert (await stocked.backend.capabilities()).template
    first = await stocked.maker.load(stocked.spec("first"))
    assert (await first.do("about"))["name"] == "first"
    assert vm(first).source == "boot"
    await first.stop()
    await stocked.rest(1)

    specs = [stocked.spec("one"), stocked.spec("two", tmp_mb=3)]
    functions = await asyncio.gather(*(stocked.maker.load(spec) for spec in specs))
    assert [vm(function).source for function in functions] == ["template", "template"]
    assert await functions[0].do("write") == ["mine"]
    one, two = await asyncio.gather(*(function.do("about") for function in functions))
    assert [one["name"], two["name"]] == ["one", "two"]
    assert [about["code"] for about in (one, two)] == [["lost+found", "main.py"]] * 2
    assert [one["layer"], two["layer"]] == [["layer of one", "lost+found"], ["layer of two", "lost+found"]]
    assert (one["tmp"], two["tmp"]) == (["mine"], [])
    assert (one["tmp_mb"], two["tmp_mb"]) == (TIGHT.tmp_mb, 3)
    assert all(mine != theirs for mine, theirs in zip(one["drawn"], two["drawn"], strict=True))
    assert one["token"] != two["token"]
    assert [about["stream"].partition("]")[2] for about in (one, two)] == [spec.instance_id for spec in specs]
    assert {abs(about["now"] - time.time()) < 5 for about in (one, two)} == {True}
    assert "nova.template=1" in one["told"]
    for function, spec in zip(functions, specs, strict=True):
        assert spec.instance_id not in one["told"]
        await function.stop()
    assert stocked.left() == []


async def test_limits_of_a_function_hold_in_a_machine_from_a_template(stocked: Stocked) -> None:
    """PO14, BE4: processes are those of the function, not of whoever was there when the template was made."""
    spec = stocked.spec("greedy", GUEST, pids=PIDS // 2)
    function = await stocked.maker.load(spec)
    assert vm(function).source == "template"
    made, stopped = await function.do("processes", most=2 * PIDS)
    assert (made < PIDS // 2, stopped) == (True, "EAGAIN")
    assert await function.error("hoard", mb=2 * spec.limits.memory_mb) in ("Nova.OutOfMemory", "MemoryError")
    await function.stop()


async def test_another_image_has_another_template(stocked: Stocked, monkeypatch: pytest.MonkeyPatch) -> None:
    """BE9: what was made of the old one is gone, and the next machine boots."""
    (old,) = stocked.templates()
    real = stocked.backend._image

    async def rebuilt(spec: InstanceSpec) -> ImageFile:
        return replace(await real(spec), digest="another")

    monkeypatch.setattr(stocked.backend, "_image", rebuilt)
    function = await stocked.maker.load(stocked.spec("rebuilt"))
    assert vm(function).source == "boot"
    assert not old.exists()
    await function.stop()
    await stocked.rest(1)
    function = await stocked.maker.load(stocked.spec("rebuilt"))
    assert (vm(function).source, (await function.do("about"))["name"]) == ("template", "rebuilt")
    await function.stop()
