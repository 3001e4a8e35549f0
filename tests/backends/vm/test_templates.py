"""When templates of machines are made, and when not."""

import asyncio
from pathlib import Path

import pytest

from nova.domain.function import Limits, NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.base import InstanceSpec
from nova.execution.backends.vm.snapshots import KeptMachines
from nova.execution.backends.vm.templates import AGAIN_S, MEMORY_MOST_MB, TemplateShelf
from tests.mock_clock import MockClock

pytestmark = pytest.mark.anyio


class Workshop:
    """Makes templates of one small file each. ``broken``: it cannot."""

    def __init__(self, folder: Path) -> None:
        self.clock = MockClock()
        self.kept = KeptMachines(folder / "kept", 100, self.clock)
        self.shelf = TemplateShelf("test", self.kept, self.make, self.clock)
        self.made: list[int] = []
        self.at_work = 0
        self.going_on = asyncio.Event()
        self.going_on.set()
        self.broken = False

    async def make(self, key: str, spec: InstanceSpec) -> None:
        self.at_work += 1
        assert self.at_work == 1, "one at a time"
        try:
            await self.going_on.wait()
            self.made.append(spec.limits.memory_mb)
            if self.broken:
                raise NovaError("dependency_unavailable", "broken")
            work = self.kept.workshop()
            (work / "state").write_bytes(b"x")
            self.kept.keep(key, work, name="n", token=b"t", fingerprint="f")
        finally:
            self.at_work -= 1

    async def made_are(self, *memory_mb: int) -> None:
        async with asyncio.timeout(20):
            while self.made != list(memory_mb) or self.at_work:
                await asyncio.sleep(0.001)


def spec(memory_mb: int = 64) -> InstanceSpec:
    return InstanceSpec("i", "python", "", None, Limits(memory_mb=memory_mb), NetworkPolicy())


async def test_one_for_each_shape_and_only_while_nothing_boots(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    shelf = workshop.shelf
    with shelf.booting():
        for memory_mb in (64, 64, 128):
            shelf.want(spec(memory_mb))
        for _ in range(20):
            await asyncio.sleep(0)
        assert workshop.made == []
    await workshop.made_are(64, 128)
    assert await shelf.find(spec(), "f") is not None
    assert await shelf.find(spec(256), "f") is None
    assert await shelf.find(spec(), "another kernel") is None
    shelf.want(spec())
    await workshop.made_are(64, 128, 64)
    await shelf.close()
    assert not (tmp_path / "kept").exists()


async def test_what_failed_is_let_alone_for_a_while(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    shelf = workshop.shelf
    workshop.broken = True
    shelf.want(spec())
    await workshop.made_are(64)
    shelf.want(spec())
    shelf.want(spec(128))
    await workshop.made_are(64, 128)
    workshop.broken = False
    await workshop.clock.advance(AGAIN_S + 1)
    shelf.want(spec())
    await workshop.made_are(64, 128, 64)
    await shelf.useless(spec())
    assert await shelf.find(spec(), "f") is None
    shelf.want(spec())
    shelf.want(spec(256))
    await workshop.made_are(64, 128, 64, 256)
    await shelf.close()


async def test_large_machines_boot(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    workshop.shelf.want(spec(MEMORY_MOST_MB))
    workshop.shelf.want(spec(MEMORY_MOST_MB // 2))
    await workshop.made_are(MEMORY_MOST_MB // 2)
    await workshop.shelf.close()


async def test_closing_ends_what_is_being_made(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    workshop.going_on.clear()
    workshop.shelf.want(spec())
    async with asyncio.timeout(20):
        while not workshop.at_work:
            await asyncio.sleep(0)
    await workshop.shelf.close()
    assert (workshop.made, workshop.at_work) == ([], 0)
    workshop.shelf.want(spec())
    await asyncio.sleep(0)
    assert workshop.at_work == 0
