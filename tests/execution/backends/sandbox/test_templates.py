"""Keeping templates ready, with places that are made of nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nova.execution.backends.sandbox import templates
from nova.execution.backends.sandbox.cells import Cell, Ended, Kind
from nova.execution.backends.sandbox.templates import Templates

pytestmark = pytest.mark.anyio

PYTHON = Kind("python", "3.11", online=True)
NODE = Kind("node", "20", online=False)


class Maker:
    """Boots and ends places; ``failures`` says how many boots fail first."""

    def __init__(self) -> None:
        self.booted: list[Cell] = []
        self.ended: list[Cell] = []
        self.failures = 0

    async def boot(self, kind: Kind) -> Cell:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise OSError("no more")
        ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        cell = Cell("x", kind, 1, -1, 1, None, ended)
        cell.channel = cast(Any, SimpleNamespace(usable=True))
        self.booted.append(cell)
        return cell

    async def end(self, cell: Cell) -> None:
        self.ended.append(cell)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
async def shelf(maker: Maker) -> AsyncIterator[Templates]:
    kept = Templates(maker.boot, maker.end, {PYTHON: 2}, most=templates.SOON + 2)
    await kept.start()
    yield kept
    await kept.close()
    assert len(maker.ended) >= sum(count for count, _ in kept.counts().values())


async def test_a_taken_template_is_replaced(shelf: Templates, maker: Maker) -> None:
    await until(lambda: shelf.counts()[PYTHON] == (2, 2))
    first = shelf.take(PYTHON)
    assert first is maker.booted[0], "the oldest first"
    await until(lambda: shelf.counts()[PYTHON] == (2, 2))
    assert len(maker.booted) == 3


async def test_demand_makes_a_shelf_grow_and_calm_makes_it_shrink(
    shelf: Templates, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shelf.take(NODE) is None
    await until(lambda: shelf.counts()[NODE] == (1, 1))
    assert shelf.take(NODE) is not None
    assert shelf.take(NODE) is None
    await until(lambda: shelf.counts()[NODE] == (2, 2))
    for _ in range(templates.SOON + 10):
        while shelf.take(NODE):
            pass
    assert shelf.counts()[NODE][1] == templates.SOON + 2
    monkeypatch.setattr(templates, "CALM_S", 0.0)
    shelf._wanted.set()
    await until(lambda: shelf.counts()[NODE] == (0, 0))


async def test_dead_templates_are_never_handed_out(shelf: Templates, maker: Maker) -> None:
    await until(lambda: shelf.counts()[PYTHON] == (2, 2))
    dead, unusable = maker.booted
    dead.ended.set_result(Ended(1))
    unusable.channel = cast(Any, SimpleNamespace(usable=False))
    assert shelf.take(PYTHON) not in (dead, unusable)
    await until(lambda: maker.ended == [unusable, dead] or maker.ended == [dead, unusable])
    await until(lambda: shelf.counts()[PYTHON][0] >= 2)


async def test_a_failure_is_tried_again_later(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "FIRST_RETRY_S", 0.001)
    maker.failures = 3
    kept = Templates(maker.boot, maker.end, {PYTHON: 1})
    await kept.start()
    await until(lambda: kept.counts()[PYTHON] == (1, 1))
    await kept.close()
    assert maker.ended == maker.booted


async def test_a_kind_that_fails_does_not_hold_up_others(maker: Maker) -> None:
    maker.failures = 1
    kept = Templates(maker.boot, maker.end, {NODE: 1, PYTHON: 1})
    await kept.start()
    await until(lambda: kept.counts()[PYTHON] == (1, 1))
    await kept.close()
