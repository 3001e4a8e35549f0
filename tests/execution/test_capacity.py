"""What a function, a tenant and a node may have at once, and who gives way when it is too little for all."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from nova.domain.function import Capacity
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.execution.admission import NodeMemory
from nova.execution.slots import Lease
from tests.execution.fakes import make_snapshot
from tests.execution.test_pool import Rig
from tests.mock_clock import settle

pytestmark = pytest.mark.anyio


async def closed(rig: Rig) -> None:
    await rig.fleet.close()
    await settle()
    assert (rig.fleet.size, rig.backend.live) == (0, {})


@pytest.fixture
async def rig_of() -> AsyncIterator[Callable[..., Rig]]:
    """Makes rigs by their settings, and sees to it that nothing is left of them."""
    rigs: list[Rig] = []

    def make(**settings: Any) -> Rig:
        rigs.append(Rig(**settings))
        return rigs[-1]

    yield make
    for rig in rigs:
        await closed(rig)


async def refused(task: "asyncio.Task[Lease]") -> NovaError:
    with pytest.raises(NovaError) as found:
        await task
    return found.value


# The function's own policy


@pytest.mark.parametrize("status", [503, 429])
async def test_calls_beyond_max_inflight_are_turned_away_at_once(rig_of: Callable[..., Rig], status: Any) -> None:
    rig = rig_of()
    hello = make_snapshot(concurrency=10, capacity=Capacity(max_inflight=3, shed_status_code=status))
    leases = [await rig.acquire(hello) for _ in range(3)]
    assert rig.fleet.pool(hello).available, "there is a free slot, and still"
    error = await refused(asyncio.create_task(rig.acquire(hello)))
    assert (error.code, error.status, error.retry_after_s) == ("inflight_limit", status, 1)
    rig.release(leases.pop())
    leases.append(await rig.acquire(hello))
    for lease in leases:
        rig.release(lease)


async def test_calls_that_wait_count_as_under_way(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of()
    rig.backend.gate = asyncio.Event()
    hello = make_snapshot(capacity=Capacity(max_inflight=2))
    tasks = rig.acquiring(hello, 2)
    await settle()
    assert (await refused(asyncio.create_task(rig.acquire(hello)))).code == "inflight_limit"
    rig.backend.gate.set()
    await rig.serve(tasks)


async def test_a_changed_policy_acts_on_the_running_pool(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of()
    before = make_snapshot(concurrency=5)
    lease = await rig.acquire(before)
    after = make_snapshot(concurrency=5, capacity=Capacity(max_inflight=1), generation=2)
    assert after.pool_key == before.pool_key
    assert (await refused(asyncio.create_task(rig.acquire(after)))).code == "inflight_limit"
    rig.release(lease)


async def test_the_function_bounds_its_own_queue(rig_of: Callable[..., Rig]) -> None:
    """By depth, within the node's own bound, and by time."""
    rig = rig_of(max_queue_depth=5, max_queue_wait=10.0)
    policy = Capacity(max_queue_depth=2, max_queue_wait_ms=300, shed_status_code=429)
    hello = make_snapshot(max_replicas=1, capacity=policy)
    lease = await rig.acquire(hello)
    waiting = rig.acquiring(hello, 2)
    await settle()
    error = await refused(asyncio.create_task(rig.acquire(hello)))
    assert (error.code, error.status) == ("queue_full", 429)
    await rig.clock.advance(0.4)
    assert {(e.code, e.status) for e in [await refused(task) for task in waiting]} == {("queue_timeout", 429)}
    rig.release(lease)
    deep = make_snapshot("deep", max_replicas=1, capacity=Capacity(max_queue_depth=50))
    lease = await rig.acquire(deep)
    waiting = rig.acquiring(deep, 5)
    await settle()
    assert (await refused(asyncio.create_task(rig.acquire(deep)))).detail.startswith("5 calls")
    rig.release(lease)
    await rig.serve(waiting)


# How long an instance lives


async def test_an_instance_is_replaced_after_max_calls(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of()
    hello = make_snapshot(max_calls=3)
    served = Counter[str]()
    for _ in range(7):
        lease = await rig.acquire(hello)
        served[lease.member.instance.instance_id] += 1
        rig.release(lease)
        await settle()
    assert sorted(served.values()) == [1, 3, 3]
    assert [reason for _, reason in rig.backend.stopped] == ["max_calls", "max_calls"]


async def test_max_calls_is_exact_with_many_at_once(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of()
    hello = make_snapshot(concurrency=4, max_calls=6, max_replicas=1)
    served = Counter(await rig.serve(rig.acquiring(hello, 20)))
    assert sorted(served.values()) == [2, 6, 6, 6]


async def test_an_instance_is_replaced_when_it_is_old_and_its_calls_end_well(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(idle_ttl=1000.0, cleanup_interval=1.0)
    await rig.fleet.start()
    hello = make_snapshot(max_instance_age_s=60)
    await rig.warm(hello, 2)
    await rig.clock.advance(50)
    lease = await rig.acquire(hello)
    assert rig.numbers()["instances"] == 2
    await rig.clock.advance(12)
    assert (rig.numbers()["ready"], rig.numbers()["draining"]) == (0, 1)
    rig.release(lease)
    await settle()
    assert [reason for _, reason in rig.backend.stopped] == ["max_age", "max_age"]


# The tenant's bound


def of_tenant(tenant: str, name: str, **more: Any) -> Any:
    return make_snapshot(name, scope=Scope(tenant, "default"), **more)


async def test_a_tenant_is_bounded_over_all_its_functions_and_nobody_else(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(max_tenant_instances=3, max_queue_wait=0.5)
    rig.backend.gate = asyncio.Event()
    mine = [task for name in "abc" for task in rig.acquiring(of_tenant("a", name), 2)]
    await settle()
    assert rig.backend.creating == 3, "boots count as soon as they begin"
    rig.backend.gate.set()
    await settle(60)
    assert rig.numbers()["instances"] == 3
    theirs = await rig.acquire(of_tenant("b", "x"))
    rig.release(theirs)
    await rig.serve(mine)


async def test_at_the_tenants_bound_its_own_idle_instance_makes_room(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(max_tenant_instances=2)
    await rig.warm(of_tenant("b", "x"), 1)
    await rig.warm(of_tenant("a", "old"), 1)
    await rig.warm(of_tenant("a", "newer"), 1)
    rig.release(await rig.acquire(of_tenant("a", "third")))
    pools = {pool["function"]: pool["instances"] for pool in rig.numbers()["pools"]}
    assert pools == {"x": 1, "old": 0, "newer": 1, "third": 1}


# The node


async def test_a_full_node_is_shared_between_tenants_that_all_have_work(rig_of: Callable[..., Rig]) -> None:
    """A pool whose queue never ends gives instances up for those who wait for their first, until shares are even."""
    rig = rig_of(max_global_instances=6)
    greedy, modest = of_tenant("greedy", "g"), of_tenant("modest", "m")
    running: list[Lease] = list(await asyncio.gather(*rig.acquiring(greedy, 6)))
    queue = rig.acquiring(greedy, 120)
    others = rig.acquiring(modest, 80)
    await settle()
    for _ in range(12):
        await rig.clock.advance(0.02)
        for lease in running:
            rig.release(lease)
        await settle(30)
        running = [task.result() for task in [*queue, *others] if task.done() and task.result().open]
    held = Counter(lease.member.pool.snapshot.name for lease in running)
    assert held == {"g": 3, "m": 3}
    await rig.serve([task for task in [*queue, *others] if not task.done() or task.result().open])


async def test_nobody_gives_way_to_an_equal(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(max_global_instances=2, max_queue_wait=0.2)
    busy = [await rig.acquire(of_tenant("a", "f")), await rig.acquire(of_tenant("b", "f"))]
    late = rig.acquiring(of_tenant("a", "f"), 1) + rig.acquiring(of_tenant("b", "f"), 1)
    await rig.clock.advance(0.05)
    for lease in busy:
        rig.release(lease)
    await rig.serve(late)
    assert not rig.backend.stopped


def test_a_memory_budget_is_what_the_node_has(tmp_path: Path) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:       1048576 kB\nMemAvailable:    786432 kB\n")
    budget = 0
    memory = NodeMemory(info, budget_mb=lambda: budget)
    total, available = memory.measure()
    assert not memory.low(0.0)
    budget = 270
    assert memory.measure() == (270 << 20, (270 << 20) - (total - available))
    assert memory.low(3.0), "more than nine tenths of it are in use"
    budget = 300
    assert not memory.low(4.0)


async def test_without_memory_nothing_boots_and_idle_instances_go(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(max_queue_wait=0.2)
    await rig.warm(make_snapshot("idle"), 1)
    rig.fleet._memory.low = lambda now: True  # type: ignore[method-assign]
    assert (await refused(asyncio.create_task(advancing(rig, make_snapshot("new"))))).code == "capacity"
    assert rig.numbers()["instances"] == 0


async def advancing(rig: Rig, snapshot: Any) -> Lease:
    task = asyncio.create_task(rig.acquire(snapshot))
    await rig.clock.advance(0.5)
    return await task
