"""Quick functions run few calls at a time; whoever could wait for something else than a core does not."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from nova.domain.function import FunctionSnapshot
from nova.execution import pacing
from nova.execution.pacing import UNPACED, WIDTH, Pace
from nova.execution.slots import Lease
from tests.execution.fakes import make_snapshot
from tests.execution.stack import real_stack
from tests.execution.test_pool import Rig
from tests.mock_clock import settle

pytestmark = pytest.mark.anyio
QUICK, SLOW = 0.0001, 0.01


def paced(*times: float) -> Pace:
    pace = Pace()
    pace.allow(True)
    for took in times:
        pace.took(took)
    return pace


def test_a_function_is_paced_while_some_of_its_calls_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_WINDOW", 10)
    assert paced(*[QUICK] * 9).width == UNPACED  # not known yet
    assert paced(*[SLOW] * 9, QUICK).width == WIDTH
    assert paced(*[SLOW] * 10).width == UNPACED
    pace = paced(*[QUICK] * 10)
    for _ in range(10):
        pace.took(SLOW)
    assert pace.width == UNPACED


async def ready(monkeypatch: pytest.MonkeyPatch, snapshot: FunctionSnapshot, instances: int = 3 * WIDTH) -> Rig:
    """That many idle instances of a function whose calls were quick."""
    monkeypatch.setattr(pacing, "_WINDOW", instances)
    rig = Rig()
    await rig.warm(snapshot, instances, QUICK)
    monkeypatch.setattr(pacing, "_WINDOW", 1000)
    return rig


async def test_few_run_at_once_and_nothing_is_booted_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    hello = make_snapshot()
    rig = await ready(monkeypatch, hello)
    pool = rig.fleet.pool(hello)
    boots = pool.boots
    tasks = rig.acquiring(hello, 2 * WIDTH)
    await settle(5)
    assert (pool.inflight, len(pool.waiters)) == (WIDTH, WIDTH)
    served = await rig.serve(tasks, QUICK)
    assert len(set(served)) == WIDTH
    assert (pool.inflight, len(pool.waiters), pool.boots) == (0, 0, boots)
    await rig.fleet.close()


async def test_calls_that_stand_still_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    hello = make_snapshot()
    rig = await ready(monkeypatch, hello)
    pool = rig.fleet.pool(hello)
    tasks = rig.acquiring(hello, 2 * WIDTH)
    leases: list[Lease] = await asyncio.gather(*tasks)  # none is given back: the free instances are used all the same
    assert pool.inflight == 2 * WIDTH
    assert len({lease.member.instance.instance_id for lease in leases}) == 2 * WIDTH
    for lease in leases:
        rig.release(lease, SLOW)
    await rig.fleet.close()


async def test_a_short_queue_is_not_full_beside_free_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    hello = make_snapshot()
    rig = await ready(monkeypatch, hello)
    rig.fleet._settings.max_queue_depth = 1
    leases = await asyncio.gather(*rig.acquiring(hello, WIDTH + 3))
    for lease in leases:
        rig.release(lease, QUICK)
    own = replace(hello, capacity=replace(hello.capacity, max_queue_depth=0))
    rig.fleet.pool(hello).adopt(own)
    assert rig.fleet.pool(hello).pace.width == UNPACED
    await rig.fleet.close()


async def test_an_instance_that_breaks_passes_its_turn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    hello = make_snapshot()
    rig = await ready(monkeypatch, hello)
    tasks = rig.acquiring(hello, 2 * WIDTH)
    await settle(5)
    pool = rig.fleet.pool(hello)
    for task in tasks[:WIDTH]:
        task.result().retire(rig.clock.monotonic(), "crashed")
    await settle(5)
    assert (pool.inflight, len(pool.waiters)) == (WIDTH, 0)
    for task in tasks[WIDTH:]:
        rig.release(task.result(), QUICK)
    await rig.fleet.close()


async def test_handlers_that_sleep_sleep_side_by_side(
    pg_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that was quick a thousand times and then waits for somebody else: its calls do not wait for one another."""
    monkeypatch.setattr(pacing, "_WINDOW", 20)
    code = "import time\ndef handler(event):\n    time.sleep(event['s'])\n    return 1\n"
    async with real_stack(pg_dsn, tmp_path) as stack:
        await stack.deploy(code)
        several = 3 * WIDTH
        await asyncio.gather(*(stack.invoke(b'{"s": 0.2}') for _ in range(several)))  # so many instances
        for _ in range(60):
            await stack.invoke(b'{"s": 0}')
        running = [stack.invoking(b'{"s": 30}') for _ in range(several)]
        async with asyncio.timeout(20):
            while stack.fleet.stats()["inflight"] < several:
                await asyncio.sleep(0.02)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
