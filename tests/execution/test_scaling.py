"""Instances that are kept ready: booted without a call, spared by the sweep, bounded like all others, and let go in time."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from nova.clock import SYSTEM_CLOCK
from nova.config import PoolSettings
from nova.domain.identity import Scope
from nova.domain.ports import Warmth
from nova.errors import NovaError
from nova.execution.scaling import LocalScaler
from tests.execution.fakes import make_snapshot
from tests.execution.stack import RealStack, real_stack
from tests.execution.test_pool import Rig
from tests.mock_clock import settle

pytestmark = pytest.mark.anyio
TTL_S = 100.0


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig(idle_ttl=60.0, cleanup_interval=10.0)
    await rig.fleet.start()
    yield rig
    await rig.fleet.close()
    assert rig.fleet.size == 0


def keep(rig: Rig, snapshot: object, floor: int) -> int:
    return rig.fleet.keep(snapshot, floor, rig.clock.monotonic() + TTL_S)  # type: ignore[arg-type]


async def test_instances_are_booted_without_a_call_and_take_the_next_one_warm(rig: Rig) -> None:
    hello = make_snapshot()
    keep(rig, hello, 3)
    await settle(60)
    assert (rig.numbers()["ready"], rig.backend.created) == (3, 3)
    assert keep(rig, hello, 3) == 3
    lease = rig.fleet.pool(hello).take()
    assert lease is not None
    assert lease.boot is None
    keep(rig, hello, 3)
    await settle()
    assert rig.backend.created == 3, "a busy instance counts"
    rig.release(lease)


async def test_the_sweep_stops_what_is_above_the_floor_only(rig: Rig) -> None:
    hello = make_snapshot()
    await rig.warm(hello, 5)
    keep(rig, hello, 2)
    await rig.clock.advance(75)
    assert rig.numbers()["ready"] == 2


async def test_a_wish_that_nobody_repeats_runs_out(rig: Rig) -> None:
    """A corona that is gone pins no instances."""
    keep(rig, make_snapshot(), 2)
    await settle(40)
    await rig.clock.advance(95)
    assert rig.numbers()["ready"] == 2
    await rig.clock.advance(20)
    assert rig.numbers()["instances"] == 0


async def test_a_wish_for_none_takes_the_earlier_one_back(rig: Rig) -> None:
    hello = make_snapshot()
    keep(rig, hello, 2)
    await settle(40)
    assert keep(rig, hello, 0) == 2
    await rig.clock.advance(75)
    assert rig.numbers()["instances"] == 0
    assert keep(rig, hello, 0) == 0


async def test_max_replicas_bounds_the_floor(rig: Rig) -> None:
    keep(rig, make_snapshot(max_replicas=2), 5)
    await settle(60)
    assert rig.backend.peak == 2


async def test_an_instance_that_dies_is_replaced(rig: Rig) -> None:
    hello = make_snapshot()
    keep(rig, hello, 2)
    await settle(40)
    rig.backend.channels[0].lose()
    await settle(40)
    assert (rig.numbers()["ready"], rig.backend.created) == (2, 3)


async def test_a_new_version_takes_over_the_floor(rig: Rig) -> None:
    old, new = make_snapshot(version=1), make_snapshot(version=2)
    keep(rig, old, 2)
    await settle(40)
    keep(rig, new, 2)
    await rig.clock.advance(75)
    assert [row["version"] for row in rig.numbers()["pools"] if row["instances"]] == [2]


async def test_a_drained_pool_has_no_floor(rig: Rig) -> None:
    hello = make_snapshot()
    keep(rig, hello, 2)
    await settle(40)
    rig.fleet.evict(Scope(), "hello", [])
    await settle(40)
    assert rig.numbers()["instances"] == 0


async def test_a_call_comes_before_any_floor_and_a_floor_takes_free_room_only() -> None:
    rig = Rig(max_global_instances=3)
    kept, other = make_snapshot("kept"), make_snapshot("other")
    await rig.warm(other)
    keep(rig, kept, 5)
    await settle(60)
    assert rig.numbers()["ready"] == 3, "the idle instance of another function was not taken for a floor"
    urgent = await asyncio.wait_for(rig.acquire(make_snapshot("urgent")), 20)
    assert [row["function"] for row in rig.numbers()["pools"] if row["instances"]] == ["kept", "urgent"]
    more = await asyncio.wait_for(rig.acquire(make_snapshot("more")), 20)
    assert rig.numbers()["instances"] == 3
    rig.release(urgent)
    rig.release(more)
    await rig.fleet.close()


async def test_code_that_does_not_load_is_tried_with_pauses(rig: Rig) -> None:
    rig.backend.error = RuntimeError("no")
    hello = make_snapshot()
    for _ in range(50):
        keep(rig, hello, 1)
        await rig.clock.advance(0.1)
    assert rig.backend.created <= 7


async def test_prewarming_holds_for_its_time_beside_any_floor(rig: Rig) -> None:
    """The duty's wish and the user's do not take each other back; the higher one counts."""
    hello = make_snapshot()
    pool = rig.fleet.prewarm(hello, 3, rig.clock.monotonic() + 200)
    assert pool is not None
    await settle(60)
    keep(rig, hello, 1)
    await rig.clock.advance(80)
    assert rig.numbers()["ready"] == 3
    keep(rig, hello, 0)
    await rig.clock.advance(80)
    assert rig.numbers()["ready"] == 3
    await rig.clock.advance(120)
    assert rig.numbers()["ready"] == 0


async def test_the_floor_of_many_slots_counts_instances(rig: Rig) -> None:
    hello = replace(make_snapshot(), concurrency=10)
    keep(rig, hello, 2)
    await settle(40)
    assert rig.numbers()["ready"] == 2


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_a_function_is_kept_ready_for_real(pg_dsn: str, tmp_path: Path) -> None:
    async with real_stack(pg_dsn, tmp_path, PoolSettings()) as stack:
        await kept_ready(stack)


async def kept_ready(stack: RealStack) -> None:
    await stack.deploy("def handler(event, context):\n    return 'here'\n")
    scaler = LocalScaler(stack.catalog, stack.fleet, SYSTEM_CLOCK)
    with pytest.raises(NovaError, match="not_found"):
        await scaler.scale(Scope(), "nobody", 1, ttl_s=10)
    await scaler.scale(Scope(), "hello", 2, ttl_s=30)
    async with asyncio.timeout(20):
        while stack.fleet.stats()["ready"] < 2:
            await asyncio.sleep(0.02)
    result = await stack.invoke()
    assert (result.cold_start, result.output) == (False, b'"here"')
    assert await scaler.scale(Scope(), "hello", 0, ttl_s=10) == 2
    await prewarmed(stack, scaler)


async def prewarmed(stack: RealStack, scaler: LocalScaler) -> None:
    """A version by its number, at once and until it is taken back."""
    await stack.deploy("def handler(event, context):\n    return 'new'\n")
    there = await scaler.prewarm(Scope(), "hello", 2, qualifier="2", ttl_s=30)
    assert there.ready + there.starting == 2
    with pytest.raises(NovaError, match="max_replicas, which is 100"):
        await scaler.prewarm(Scope(), "hello", 101, qualifier=None, ttl_s=30)
    async with asyncio.timeout(20):
        while await scaler.prewarm(Scope(), "hello", 2, qualifier="2", ttl_s=30) != Warmth(2, 0):
            await asyncio.sleep(0.02)
    assert (await stack.invoke(qualifier="2")).cold_start is False
    assert await scaler.prewarm(Scope(), "hello", 0, qualifier="2", ttl_s=30) == Warmth(2, 0)
