"""Deploys under load: the new version gets ready while the one before still serves."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nova.config import PoolSettings
from nova.domain.call import CallResult
from nova.domain.identity import Scope
from nova.errors import NovaError
from tests.execution.stack import RealStack, real_stack

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
CALLERS = 4
CODE = """
import time

def handler(event, context):
    time.sleep(event.get("takes_s", 0.0))
    return {number}
"""
STEADY = b'{"takes_s": 0.01}'
"""Long enough that each caller has an instance to itself: none more is wanted while the load lasts."""


@pytest.fixture
async def stack(pg_dsn: str, tmp_path: Path) -> AsyncIterator[RealStack]:
    async with real_stack(pg_dsn, tmp_path, PoolSettings()) as running:
        yield running


class Load:
    """Callers that call one after another, until told to stop."""

    def __init__(self, stack: RealStack, name: str) -> None:
        self.stack = stack
        self.name = name
        self.results: list[CallResult] = []
        self.failures: list[NovaError] = []
        self._going = True
        self._tasks = [asyncio.create_task(self._call()) for _ in range(CALLERS)]

    async def _call(self) -> None:
        while self._going:
            try:
                self.results.append(await self.stack.invoke(STEADY, self.name))
            except NovaError as error:
                self.failures.append(error)
            await asyncio.sleep(0)

    async def until(self, version: int) -> None:
        """Every caller was answered by this version."""
        seen = len(self.results)
        async with asyncio.timeout(20):
            while [r.version for r in self.results[seen:][-CALLERS:]] != [version] * CALLERS:
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        self._going = False
        await asyncio.gather(*self._tasks)


async def test_a_new_version_takes_over(stack: RealStack) -> None:
    await no_call_waits_for_a_boot_through_five_deploys(stack, "busy")
    await a_version_that_cannot_start_takes_over_all_the_same(stack, "broken")
    await a_call_by_number_and_a_quiet_function_meet_the_new_version_at_once(stack, "quiet")


async def no_call_waits_for_a_boot_through_five_deploys(stack: RealStack, name: str) -> None:
    """The calls in between run the version before; in the end only the last version has instances."""
    await stack.deploy(CODE.format(number=1), name)
    await asyncio.gather(*(stack.invoke(b'{"takes_s": 1}', name) for _ in range(CALLERS)))
    assert len(stack.fleet.instances(Scope(), name)) == CALLERS
    for _ in range(200):
        await stack.invoke(name=name)
    load = Load(stack, name)
    for number in range(2, 7):
        await load.until(number - 1)
        assert await stack.deploy(CODE.format(number=number), name) == number
    await load.until(6)
    await load.end()
    assert not load.failures
    assert {result.output for result in load.results} == {b"%d" % number for number in range(1, 7)}
    assert all(result.output == b"%d" % result.version for result in load.results), "what is told is what ran"
    assert [result.version for result in load.results if result.cold_start] == []
    async with asyncio.timeout(20):
        while [pool["version"] for pool in stack.fleet.stats()["pools"]] != [6]:
            await asyncio.sleep(0.02)


async def a_version_that_cannot_start_takes_over_all_the_same(stack: RealStack, name: str) -> None:
    """Its callers are told what is wrong with it; a call that names the version before still gets that one."""
    await stack.deploy(CODE.format(number=1), name)
    for _ in range(300):
        await stack.invoke(name=name)
    await stack.deploy("raise RuntimeError('broken')\n", name)
    async with asyncio.timeout(20):
        while (result := await stack.invoke(name=name)).error is None:
            assert result.version == 1
    assert (result.version, result.error.type) == (2, "RuntimeError")
    assert (await stack.invoke(name=name, qualifier="1")).output == b"1"


async def a_call_by_number_and_a_quiet_function_meet_the_new_version_at_once(stack: RealStack, name: str) -> None:
    await stack.deploy(CODE.format(number=1), name)
    assert (await stack.invoke(name=name)).output == b"1"
    await stack.deploy(CODE.format(number=2), name)
    assert (await stack.invoke(name=name)).output == b"2"
    for _ in range(300):
        await stack.invoke(name=name)
    await stack.deploy(CODE.format(number=3), name)
    assert (await stack.invoke(name=name, qualifier="3")).output == b"3"
