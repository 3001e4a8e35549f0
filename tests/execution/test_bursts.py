"""A function that suddenly has many callers, on real instances: how many are made for it, and what is told meanwhile."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nova.config import PoolSettings
from tests.execution.stack import RealStack, real_stack

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
CALLS = 200
NOTHING = "def handler(event, context):\n    return 1\n"
NAP = "import time\ndef handler(event, context):\n    time.sleep(0.05)\n    return 1\n"


@pytest.fixture
async def stack(pg_dsn: str, tmp_path: Path) -> AsyncIterator[RealStack]:
    async with real_stack(pg_dsn, tmp_path, PoolSettings()) as running:
        yield running


async def test_a_burst_to_a_cold_function_boots_what_it_needs_and_the_books_balance_at_every_moment(
    stack: RealStack,
) -> None:
    """PO7: 200 first calls at once. Of a function that answers at once few instances serve all; of one that takes
    50 ms, fewer than half as many as there are calls. Whenever somebody looks, the numbers add up."""
    quick = await burst(stack, "quick", NOTHING)
    assert quick <= CALLS // 5
    slow = await burst(stack, "slow", NAP)
    assert quick <= slow <= CALLS // 2


async def burst(stack: RealStack, name: str, code: str) -> int:
    """The boots that it took."""
    await stack.deploy(code, name)
    before = stack.fleet.created
    calls = [stack.invoking(name=name) for _ in range(CALLS)]
    looks = asyncio.create_task(looking(stack))
    results = await asyncio.gather(*calls)
    assert not looks.done() or looks.result()
    looks.cancel()
    assert [result.error for result in results if result.error] == []
    made = stack.fleet.created - before
    assert sum(result.cold_start for result in results) <= made
    stats = stack.fleet.stats()
    assert (stats["inflight"], stats["waiting"]) == (0, 0)
    return made


async def looking(stack: RealStack) -> None:
    while True:
        stats = stack.executor.stats()
        kinds = ("booting", "ready", "busy", "draining", "stopping")
        for row in [stats, *stats["pools"]]:
            assert row["instances"] == sum(row[kind] for kind in kinds)
        for kind in (*kinds, "instances", "inflight", "waiting"):
            assert stats[kind] == sum(row[kind] for row in stats["pools"])
        assert stats["created"] - stats["stopped"] + stats["booting"] == stats["instances"]
        assert stats["inflight"] + stats["waiting"] <= stats["active"]
        await asyncio.sleep(0.001)
