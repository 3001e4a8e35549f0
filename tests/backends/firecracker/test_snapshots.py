"""Kept machines: what goes on from one, what does not, and that nothing of either stays. The machines are real, and so is what
they are written to and read from; the agents' own part is tested in ``tests/agent/test_boot.py``."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from nova.agent.messages import ThawHead
from nova.domain.function import Limits
from nova.errors import NovaError
from nova.execution.backends.base import InstanceSpec, SnapshotRefused, WorkerCall
from nova.execution.backends.firecracker.api import FirecrackerApi
from nova.execution.backends.firecracker.backend import FirecrackerBackend, MicroVm
from nova.execution.backends.firecracker.jail import Jail
from nova.execution.backends.firecracker.machine import Machine
from nova.execution.backends.vm.network import VmNetwork
from nova.execution.channel import DirectChannel, FreezeRefused
from tests.agent.harness import spec_of
from tests.backends.firecracker.hosting import Ground, ground

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("firecracker_here")]


@pytest.fixture(scope="module")
def place() -> Iterator[Ground]:
    with ground() as made:
        yield made


@pytest.fixture(scope="module")
async def backend(anyio_backend: str, place: Ground) -> AsyncIterator[FirecrackerBackend]:
    async with place.backend() as made:
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


@pytest.fixture
def spec(place: Ground) -> InstanceSpec:
    return place.spec()


async def letter(vm: MicroVm) -> str:
    async with asyncio.timeout(10):
        while not (found := re.findall(rb"(?m)^([a-z])\r?$", vm.machine.console.tail())):
            await asyncio.sleep(0.01)
    return cast(bytes, found[0]).decode()


async def test_two_machines_go_on_from_one_with_tokens_and_names_of_their_own(
    backend: FirecrackerBackend, place: Ground, spec: InstanceSpec, thaws: list[ThawHead]
) -> None:
    """BE9."""
    await backend.snapshot("k", spec, spec_of("python"))
    assert place.leftovers() == []
    assert await backend.snapshot_memory("k") > 1 << 20
    (folder,) = (place.options.snapshot_dir / place.options.node).iterdir()
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("state", "memory", "code.ext4"), 0o440
    )
    first, second = await asyncio.gather(
        *(backend.restore("k", replace(spec, instance_id=name)) for name in ("first", "second"))
    )
    for vm in (first, second):
        assert isinstance(vm, MicroVm)
        assert vm.source == "snapshot"
        assert await letter(vm) > "a"
        assert b"hello" not in vm.machine.console.tail()
        await vm.channel.init(spec_of("python"))
        result = await vm.channel.call(WorkerCall("r", b"[1]", b'{"request_id": "r"}', time.monotonic() + 10))
        assert json.loads(result.output or b"") == [1]
    assert {head.instance_id for head in thaws} == {"first", "second"}
    assert len({head.token_sha256 for head in thaws} | {head.seed for head in thaws}) == 4
    await backend.drop_snapshot("k")
    await backend.drop_snapshot("k")
    assert await backend.restore("k", spec) is None
    assert await backend.snapshot_memory("k") == 0
    for vm in (first, second):
        assert isinstance(vm, MicroVm)
        assert await vm.channel.ping(5), "instances outlive what they came from"
        await backend.stop(vm, reason="test")
    assert place.leftovers() == []


async def test_a_snapshot_of_something_else_is_never_gone_on_from(
    backend: FirecrackerBackend, place: Ground, spec: InstanceSpec, thaws: list[ThawHead]
) -> None:
    """BE9."""
    await backend.snapshot("k", spec, spec_of("python"))
    assert await backend.restore("k", replace(spec, limits=Limits(memory_mb=64))) is None
    assert await backend.snapshot_memory("k") == 0, "it is gone"
    await backend.snapshot("k", spec, spec_of("python"))
    _overwrite(place)
    assert await backend.restore("k", spec) is None
    assert thaws == []
    assert place.leftovers() == []


def _overwrite(place: Ground) -> None:
    (memory,) = (place.options.snapshot_dir / place.options.node).glob("*/memory")
    memory.write_bytes(b"of somebody else")


STEPS: dict[str, tuple[Any, str]] = {
    "network": (VmNetwork, "lease"),
    "jail": (Jail, "make"),
    "shared files": (Jail, "share"),
    "process": (Machine, "launch"),
    "load": (FirecrackerApi, "load_snapshot"),
    "agent": (MicroVm, "greet"),
    "thaw": (MicroVm, "thaw"),
}


async def test_a_fault_at_any_step_of_going_on_leaves_nothing_and_the_snapshot_whole(
    backend: FirecrackerBackend,
    place: Ground,
    spec: InstanceSpec,
    thaws: list[ThawHead],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """BE1. There is no instance then, and the caller boots one."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("injected")

    await backend.snapshot("k", spec, spec_of("python"))
    for step, (owner, name) in STEPS.items():
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            assert await backend.restore("k", spec) is None, step
        assert place.leftovers() == [], step
    vm = await backend.restore("k", spec)
    assert vm is not None
    await backend.stop(vm, reason="test")
    await backend.drop_snapshot("k")


@pytest.mark.parametrize("step", ["pause", "create_snapshot"])
async def test_a_fault_while_a_machine_is_kept_leaves_nothing(
    backend: FirecrackerBackend,
    place: Ground,
    spec: InstanceSpec,
    thaws: list[ThawHead],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """BE1."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("injected")

    monkeypatch.setattr(FirecrackerApi, step, fail)
    with pytest.raises(NovaError, match="injected"):
        await backend.snapshot("k", spec, spec_of("python"))
    assert place.leftovers() == []
    assert not any((place.options.snapshot_dir / place.options.node).iterdir())


async def test_a_function_that_cannot_be_kept_says_why(
    backend: FirecrackerBackend, place: Ground, spec: InstanceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def freeze(_: DirectChannel) -> None:
        raise FreezeRefused("it has two workers")

    monkeypatch.setattr(DirectChannel, "freeze", freeze)
    with pytest.raises(SnapshotRefused, match="two workers"):
        await backend.snapshot("k", spec, spec_of("python"))
    assert place.leftovers() == []


async def test_what_a_killed_daemon_kept_is_removed(place: Ground, tmp_path: Path) -> None:
    """Its machines' tokens died with it."""
    left = [tmp_path / "gone" / "0123", tmp_path / "gone.templates" / "4567"]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "memory").write_bytes(bytes(4096))
    async with place.backend("gone", snapshot_dir=tmp_path):
        assert not any(folder.exists() for folder in left)
