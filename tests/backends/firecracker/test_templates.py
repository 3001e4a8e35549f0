"""Cold starts from a machine that was booted for nobody, on the host's side: real machines, agents beside them. That a guest
becomes its function's own is shown with QEMU, whose machines run the same agent (``tests/backends/qemu/test_templates.py``)."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from nova.agent.messages import ThawHead
from nova.domain.function import Limits
from nova.execution.backends.base import InstanceSpec, LayerMount
from nova.execution.backends.firecracker.api import FirecrackerApi
from nova.execution.backends.firecracker.backend import FirecrackerBackend, MicroVm
from nova.execution.channel import DirectChannel
from tests.agent.harness import spec_of
from tests.backends.firecracker.hosting import Ground, ask, ground

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("firecracker_here")]


@pytest.fixture(scope="module")
def place() -> Iterator[Ground]:
    with ground() as made:
        yield made


@pytest.fixture
async def backend(place: Ground) -> AsyncIterator[FirecrackerBackend]:
    async with place.backend(templates=True, drive_mbps=20, drive_ops=500) as made:
        yield made
    assert place.leftovers() == []
    assert not any(place.options.snapshot_dir.iterdir())


@pytest.fixture
def thaws(monkeypatch: pytest.MonkeyPatch) -> list[ThawHead]:
    """The agents beside the machines are never frozen; what they were told to become is kept here."""
    told: list[ThawHead] = []

    async def freeze(_: DirectChannel) -> None: ...

    async def thaw(channel: DirectChannel, head: ThawHead) -> None:
        told.append(head)
        channel.instance_id = head.instance_id

    monkeypatch.setattr(DirectChannel, "freeze", freeze)
    monkeypatch.setattr(DirectChannel, "thaw", thaw)
    return told


async def make(backend: FirecrackerBackend, spec: InstanceSpec) -> MicroVm:
    return cast(MicroVm, await backend.create(spec))


async def stocked(backend: FirecrackerBackend, place: Ground, count: int = 1) -> None:
    """Until there are so many templates."""
    folder = place.options.snapshot_dir / f"{place.options.node}.templates"
    async with asyncio.timeout(20):
        while len([path for path in folder.glob("*") if not path.name.startswith("new-")]) != count:
            await asyncio.sleep(0.02)


def config(vm: MicroVm) -> dict[str, Any]:
    found: dict[str, Any] = ask(vm.machine.jail.root / "api.sock", "/vm/config")
    return found


@pytest.mark.host_side("firecracker", "template")
async def test_machines_from_one_template_have_drives_places_and_limits_of_their_own(
    backend: FirecrackerBackend, place: Ground, thaws: list[ThawHead]
) -> None:
    """PO14."""
    capabilities = await backend.capabilities()
    assert (capabilities.template, capabilities.enforces["disk_io"]) == (True, "hard")
    layer = LayerMount(place.folder / "code", "/layers/0")
    limits = Limits(memory_mb=32, tmp_mb=7, pids=9)
    first = await make(backend, place.spec(limits=replace(limits, net_mbps=16), layers=(layer,)))
    assert first.source == "boot"
    assert "nova.template" not in place.told[-1]
    await stocked(backend, place)
    assert "nova.template=1" in place.told[-1]
    assert "nova.mounts" not in place.told[-1]

    specs = [place.spec(limits=replace(limits, net_mbps=mbps), layers=(layer,)) for mbps in (8, 0)]
    held, free = [await make(backend, spec) for spec in specs]
    assert {held.source, free.source} == {"template"}
    assert {head.instance_id for head in thaws} == {spec.instance_id for spec in specs}
    assert len({head.token_sha256 for head in thaws} | {head.seed for head in thaws}) == 4
    for head in thaws:
        assert head.place is not None
        assert (head.place.tmp_mb, head.place.memory_mb, head.place.pids) == (7, 32, 9)
        assert head.place.mounts == "vdc:/layers/0:ro"
    for vm in (held, free):
        files = {name: (vm.machine.jail.root / name).stat() for name in ("code.ext4", "layer0.ext4")}
        assert {found.st_size for found in files.values()} == {512 << 20}, "as large as the template was told"
        assert max(found.st_blocks * 512 for found in files.values()) < 32 << 20
        await vm.channel.init(spec_of("python"))
        assert await vm.channel.ping(5)
    inodes = {(vm.machine.jail.root / "code.ext4").stat().st_ino for vm in (first, held, free)}
    assert len(inodes) == 3
    interfaces = [config(vm)["network-interfaces"][0] for vm in (held, free)]
    for way in ("rx_rate_limiter", "tx_rate_limiter"):
        assert interfaces[0][way]["bandwidth"] | {"one_time_burst": 0} == {
            "size": 1_000_000,
            "refill_time": 1000,
            "one_time_burst": 0,
        }
        assert not (interfaces[1].get(way) or {}).get("bandwidth")
    for vm in (first, held, free):
        for drive in config(vm)["drives"]:
            assert drive["rate_limiter"]["bandwidth"]["size"] == 20_000_000
            assert drive["rate_limiter"]["ops"]["size"] == 500
        await backend.stop(vm, reason="test")


async def test_a_template_that_does_not_go_on_goes_and_the_instance_boots(
    backend: FirecrackerBackend, place: Ground, thaws: list[ThawHead], monkeypatch: pytest.MonkeyPatch
) -> None:
    """BE1: and nothing of the attempt stays."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("injected")

    await backend.stop(await make(backend, place.spec()), reason="test")
    await stocked(backend, place)
    with monkeypatch.context() as patch:
        patch.setattr(FirecrackerApi, "load_snapshot", fail)
        vm = await make(backend, place.spec())
    assert vm.source == "boot"
    await stocked(backend, place, 0)
    await backend.stop(vm, reason="test")
    again = await make(backend, place.spec())
    assert again.source == "boot", "and it is not tried again at once"
    await backend.stop(again, reason="test")
    assert place.leftovers() == []


async def test_closing_takes_back_a_template_that_is_being_made(place: Ground, thaws: list[ThawHead]) -> None:
    async with place.backend("closing", templates=True) as backend:
        vm = await make(backend, place.spec())
        async with asyncio.timeout(20):
            while not any(place.options.snapshot_dir.glob("closing.templates/new-*")):
                await asyncio.sleep(0.01)
        await backend.stop(vm, reason="test")
    assert place.leftovers("closing") == []
    assert not any(place.options.snapshot_dir.iterdir())
