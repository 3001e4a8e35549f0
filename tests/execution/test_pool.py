"""The pool's promises, on a backend and a clock that the tests drive."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from nova.config import PoolSettings
from nova.domain.function import FunctionSnapshot
from nova.domain.identity import Scope
from nova.errors import FunctionError, NovaError
from nova.execution.boots import Booter
from nova.execution.fleet import InstanceFleet
from nova.execution.slots import Lease, LoadFailed, PoolMoved
from tests.execution.fakes import FakeArtifacts, FakeBackend, OneBackend, make_snapshot
from tests.mock_clock import MockClock, settle

pytestmark = pytest.mark.anyio


class Plenty:
    """A machine that never runs out of memory."""

    def capacity(self) -> int:
        return 1000

    def low(self, now: float) -> bool:
        return False

    def look(self, now: float) -> None:
        pass


class Rig:
    """A fleet on a fake backend, and short words for what tests do with it."""

    def __init__(self, **settings: Any) -> None:
        self.clock = MockClock()
        self.backend = FakeBackend()
        booter = Booter(FakeArtifacts(), OneBackend(self.backend), self.clock)
        memory: Any = Plenty()
        self.fleet = InstanceFleet(booter, PoolSettings(**settings), memory=memory, clock=self.clock, parallel_boots=4)

    async def acquire(self, snapshot: FunctionSnapshot, deadline: float | None = None) -> Lease:
        pool = self.fleet.pool(snapshot)
        async with asyncio.timeout(20):  # a slot that never comes is a failure, not a hang
            return pool.take() or await self.fleet.wait(pool, deadline)

    def acquiring(self, snapshot: FunctionSnapshot, count: int = 1) -> list[asyncio.Task[Lease]]:
        return [asyncio.create_task(self.acquire(snapshot)) for _ in range(count)]

    def release(self, lease: Lease, service_s: float = 0.001) -> None:
        lease.release(self.clock.monotonic(), service_s)

    async def warm(self, snapshot: FunctionSnapshot, instances: int = 1, service_s: float = 0.001) -> None:
        """Bring up that many idle instances."""
        leases = await asyncio.gather(*self.acquiring(snapshot, instances))
        for lease in leases:
            self.release(lease, service_s)

    async def serve(self, tasks: list[asyncio.Task[Lease]], service_s: float = 0.001) -> list[str]:
        """Release whatever was leased until every task had its turn; who served whom, in order."""
        served = []
        for task in tasks:
            lease = await task
            served.append(lease.member.instance.instance_id)
            self.release(lease, service_s)
            await settle(5)
        return served

    def numbers(self) -> dict[str, Any]:
        stats = self.fleet.stats()
        assert (
            stats["instances"]
            == self.fleet.size
            == sum(stats[kind] for kind in ("booting", "ready", "busy", "draining", "stopping"))
        )
        assert stats["created"] - stats["stopped"] + stats["booting"] == stats["instances"]
        return stats


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.fleet.start()
    yield rig
    await rig.fleet.close()
    await settle()
    assert rig.fleet.size == 0
    assert not rig.backend.live


def error_of(task: "asyncio.Task[Lease]") -> BaseException | None:
    return task.exception()


async def test_a_freed_slot_serves_the_next_call_without_a_boot(rig: Rig) -> None:
    hello = make_snapshot()
    first = await rig.acquire(hello)
    rig.release(first)
    second = rig.fleet.pool(hello).take()
    assert second is not None
    assert second.member is first.member
    assert rig.backend.created == 1
    rig.release(second)


async def test_only_the_call_that_waited_for_a_boot_started_cold(rig: Rig) -> None:
    hello = make_snapshot()
    lease = await rig.acquire(hello)
    assert lease.boot is not None
    assert lease.boot.source == "template"
    rig.release(lease)
    warm = await rig.acquire(hello)
    assert warm.boot is None
    rig.release(warm)


async def test_a_lease_cannot_be_given_back_twice(rig: Rig) -> None:
    lease = await rig.acquire(make_snapshot())
    rig.release(lease)
    with pytest.raises(RuntimeError, match="twice"):
        rig.release(lease)
    with pytest.raises(RuntimeError, match="twice"):
        lease.retire(rig.clock.monotonic(), "crashed")
    assert rig.numbers()["inflight"] == 0


async def test_the_instance_used_last_is_taken_first(rig: Rig) -> None:
    hello = make_snapshot()
    a, b, c = await asyncio.gather(*rig.acquiring(hello, 3))
    for lease in (b, c, a):
        rig.release(lease)
    taken = rig.fleet.pool(hello).take()
    assert taken is not None
    assert taken.member is a.member
    rig.release(taken)


async def test_lost_instances_are_never_handed_out_again(rig: Rig) -> None:
    """PO2: a dead instance is gone from the pool at once, idle or busy, and the counters return to 0."""
    hello = make_snapshot()
    await rig.warm(hello, 2)
    idle, busy = rig.fleet.pool(hello).available
    lease = await rig.acquire(hello)
    assert lease.member is busy
    idle.instance.channel.lose()  # type: ignore[attr-defined]
    busy.instance.channel.lose()  # type: ignore[attr-defined]
    assert rig.fleet.pool(hello).take() is None
    lease.retire(rig.clock.monotonic(), "crashed")
    await settle()
    assert (rig.numbers()["inflight"], rig.numbers()["instances"]) == (0, 0)
    fresh = await rig.acquire(hello)
    assert fresh.member not in (idle, busy)
    rig.release(fresh)


async def test_the_slot_goes_back_where_it_came_from(rig: Rig) -> None:
    """PO3: settings that change during a call do not lose its slot."""
    old = make_snapshot(max_replicas=5, generation=1)
    lease = await rig.acquire(old)
    new = replace(old, max_replicas=2, generation=2)
    assert rig.fleet.pool(new) is lease.member.pool
    rig.release(lease)
    again = rig.fleet.pool(new).take()
    assert again is not None
    assert again.member is lease.member
    rig.release(again)
    assert rig.fleet.pool(old).snapshot.max_replicas == 2, "an older snapshot does not undo the change"


@pytest.mark.parametrize("replicas", [1, 3, 17])
async def test_a_thousand_calls_stay_within_max_replicas(rig: Rig, replicas: int) -> None:
    """PO4: booting instances count, so the bound holds at every moment; PO7: no more than that are booted."""
    hello = make_snapshot(max_replicas=replicas)
    tasks = rig.acquiring(hello, 1000)
    served = await rig.serve(tasks)
    assert len(served) == 1000
    assert rig.backend.peak <= replicas
    assert rig.backend.created <= replicas
    assert rig.numbers()["inflight"] == 0


async def test_the_nodes_bound_holds_over_all_pools() -> None:
    """PO4: ten functions together never have more instances than the node allows."""
    rig = Rig(max_global_instances=6)
    snapshots = [make_snapshot(f"f{number}") for number in range(10)]
    tasks = [task for snapshot in snapshots for task in rig.acquiring(snapshot, 5)]
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            rig.release(task.result())
        await rig.clock.advance(0.02)
        rig.numbers()
    assert rig.backend.peak <= 6
    await rig.fleet.close()
    assert rig.fleet.size == 0


async def test_an_idle_instance_makes_room_for_another_function() -> None:
    rig = Rig(max_global_instances=2)
    await rig.warm(make_snapshot("old"), 2)
    lease = await asyncio.wait_for(rig.acquire(make_snapshot("new")), 20)
    assert [reason for _, reason in rig.backend.stopped] == ["reclaimed"]
    rig.release(lease)
    await rig.fleet.close()


async def test_without_room_a_call_is_told_so() -> None:
    rig = Rig(max_global_instances=1, max_queue_wait=2.0)
    busy = await rig.acquire(make_snapshot("busy"))
    task = asyncio.create_task(rig.acquire(make_snapshot("other")))
    await rig.clock.advance(2.1)
    error = error_of(task)
    assert isinstance(error, NovaError)
    assert (error.code, error.retry_after_s) == ("capacity", 1)
    rig.release(busy)
    await rig.fleet.close()


async def test_cancelling_who_started_a_boot_does_not_disturb_the_others(rig: Rig) -> None:
    """PO5: the boot is nobody's own; the next waiter gets what it brings."""
    hello = make_snapshot(max_replicas=1)
    rig.backend.gate = asyncio.Event()
    first, second = rig.acquiring(hello, 2)
    await settle()
    first.cancel()
    await settle()
    rig.backend.gate.set()
    lease = await second
    assert first.cancelled()
    assert lease.boot is not None
    assert rig.backend.created == 1
    rig.release(lease)


async def test_a_boots_exception_reaches_all_waiters(rig: Rig) -> None:
    """PO5: everybody who waits gets the error, each an exception of its own, and nobody hangs."""
    hello = make_snapshot(max_replicas=1)
    rig.backend.gate = asyncio.Event()
    rig.backend.error = RuntimeError("the disk is on fire")
    tasks = rig.acquiring(hello, 50)
    await settle()
    rig.backend.gate.set()
    await settle()
    errors = [error_of(task) for task in tasks]
    assert {error.code for error in errors if isinstance(error, NovaError)} == {"internal"}
    assert len({id(error) for error in errors}) == 50
    assert "fire" not in str(errors[0]), "details of our own faults stay in the log"
    assert rig.numbers()["waiting"] == 0


async def test_waiters_are_served_in_order(rig: Rig) -> None:
    """PO6: first come, first served; a newcomer does not overtake; one freed slot wakes one waiter."""
    hello = make_snapshot(max_replicas=1)
    holder = await rig.acquire(hello)
    order: list[int] = []

    async def visitor(number: int) -> None:
        lease = await rig.acquire(hello)
        order.append(number)
        await asyncio.sleep(0)
        rig.release(lease)

    tasks = []
    for number in range(20):
        tasks.append(asyncio.create_task(visitor(number)))
        await settle(2)
    rig.release(holder)
    newcomer = asyncio.create_task(visitor(99))
    assert sum(1 for task in tasks if task.done()) == 0
    await asyncio.gather(*tasks, newcomer)
    assert order == [*range(20), 99]


async def test_a_waiter_that_leaves_gives_its_slot_to_the_next(rig: Rig) -> None:
    """PO6: a slot that was handed to a caller who went away in that moment is not lost."""
    hello = make_snapshot(max_replicas=1)
    holder = await rig.acquire(hello)
    first, second = rig.acquiring(hello, 2)
    await settle()
    rig.release(holder)  # the slot is first's now, but its task has not run
    first.cancel()
    lease = await second
    assert first.cancelled()
    rig.release(lease)
    assert rig.numbers()["inflight"] == 0


async def test_a_burst_on_a_warm_pool_boots_only_what_the_queue_needs(rig: Rig) -> None:
    """PO7: calls that running instances will free within one boot time do not cause boots."""
    hello = make_snapshot()
    await rig.warm(hello, 4, service_s=0.001)
    rig.fleet.pool(hello).boot_s = 0.100
    before = rig.backend.created
    served = await rig.serve(rig.acquiring(hello, 100), service_s=0.001)
    assert len(served) == 100
    assert rig.backend.created == before
    assert len(set(served)) == 4


async def test_when_running_calls_turn_slow_the_queue_gets_its_instances(rig: Rig) -> None:
    """The mean of the past does not starve a queue: what is seen now corrects it."""
    hello = make_snapshot()
    await rig.warm(hello, 1, service_s=0.001)
    pool = rig.fleet.pool(hello)
    pool.boot_s = 0.100
    slow = await rig.acquire(hello)
    waiter = rig.acquiring(hello)[0]
    await settle()
    assert not pool.booting
    assert not waiter.done()
    await rig.clock.advance(0.3)
    rig.release(await waiter)
    rig.release(slow)
    assert rig.backend.created == 2


async def test_one_instance_with_many_slots_serves_many_waiters(rig: Rig) -> None:
    hello = make_snapshot(concurrency=10, max_replicas=5)
    leases = await asyncio.gather(*rig.acquiring(hello, 20))
    assert len({lease.member for lease in leases}) == 2
    assert sum(lease.boot is not None for lease in leases) == 2, "one cold start per instance"
    assert all(lease.member.inflight == 10 for lease in leases)
    for lease in leases:
        rig.release(lease)
    assert rig.numbers()["inflight"] == 0


async def test_boots_at_once_are_bounded_and_tenants_take_turns(rig: Rig) -> None:
    rig.backend.gate = asyncio.Event()
    flood = [make_snapshot("flood", scope=Scope("loud"), version=number) for number in range(1, 40)]
    tasks = [task for snapshot in flood for task in rig.acquiring(snapshot)]
    await settle()
    quiet = rig.acquiring(make_snapshot("quiet", scope=Scope("quiet")))[0]
    await settle()
    assert rig.backend.creating == 4
    rig.backend.gate.set()
    await quiet
    assert sum(task.done() for task in tasks) <= 8, "the other tenant did not queue behind the flood"
    for lease in await asyncio.gather(quiet, *tasks):
        rig.release(lease)
    assert rig.backend.peak_creating <= 4


async def test_a_slow_load_does_not_hold_up_other_boots(rig: Rig) -> None:
    rig.backend.slow_init = asyncio.Event()
    slow = [task for number in range(4) for task in rig.acquiring(make_snapshot(f"slow{number}"))]
    await settle()
    other = rig.acquiring(make_snapshot("other"))[0]
    await settle()
    assert rig.backend.created == 4
    await rig.clock.advance(0.3)
    assert rig.backend.created == 5
    rig.backend.slow_init.set()
    for lease in await asyncio.gather(other, *slow):
        rig.release(lease)


async def test_eviction_lets_calls_finish_and_moves_waiters(rig: Rig) -> None:
    """PO9: an old version's calls end where they run, its waiters are sent on, and nothing of it remains."""
    old, new = make_snapshot(max_replicas=2), make_snapshot(version=2)
    running, idle = await rig.acquire(old), await rig.acquire(old)
    rig.release(idle)
    reused = await rig.acquire(old)
    waiting = rig.acquiring(old, 3)
    await settle()
    assert rig.fleet.evict(Scope(), "hello", {new.pool_key}) == 1
    await settle()
    assert all(isinstance(error_of(task), PoolMoved) for task in waiting)
    assert running.member.instance.channel.usable
    assert running.member.label == "draining"
    rig.release(running)
    rig.release(reused)
    await settle()
    assert rig.numbers()["pools"] == []
    assert not rig.backend.live


async def test_after_a_hundred_deploys_only_the_last_version_is_left(rig: Rig) -> None:
    """PO9: pools and instances of versions that nobody can reach are gone."""
    for version in range(1, 101):
        snapshot = make_snapshot(version=version)
        lease = await rig.acquire(snapshot)
        rig.fleet.evict(Scope(), "hello", {snapshot.pool_key})
        rig.release(lease)
    await settle()
    numbers = rig.numbers()
    assert [(row["version"], row["instances"]) for row in numbers["pools"]] == [(100, 1)]
    assert len(rig.backend.live) == 1


async def test_a_function_that_never_loads_is_tried_with_growing_pauses(rig: Rig) -> None:
    """PO18: callers get the error at once, and boots are tried 1, 2, 4 … seconds apart."""
    hello = make_snapshot(max_replicas=1)
    rig.backend.init_error = FunctionError("ImportError", "no module named nowhere")
    for _ in range(3):
        with pytest.raises(LoadFailed):
            await rig.acquire(hello)
    assert rig.backend.created == 3
    pauses = []
    for _ in range(4):
        waited = 0.0
        before = rig.backend.created
        while rig.backend.created == before:
            task = asyncio.create_task(rig.acquire(hello))
            await settle()
            assert isinstance(error_of(task), LoadFailed), "nobody waits for a pause to end"
            if rig.backend.created == before:
                await rig.clock.advance(0.5)
                waited += 0.5
        pauses.append(waited)
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    rig.backend.init_error = None
    await rig.clock.advance(16)
    rig.release(await rig.acquire(hello))
    assert rig.fleet.pool(hello).failures == 0
    assert not [row for row in rig.numbers()["pools"] if row["inflight"]]


async def test_a_failed_boot_leaves_waiters_that_running_instances_will_serve(rig: Rig) -> None:
    hello = make_snapshot()
    holder = await rig.acquire(hello)
    rig.backend.error = RuntimeError("no memory")
    waiter = rig.acquiring(hello)[0]
    await settle()
    rig.release(holder)
    lease = await waiter
    assert lease.member is holder.member
    rig.release(lease)


async def test_the_queue_is_bounded() -> None:
    rig = Rig(max_queue_depth=3)
    hello = make_snapshot(max_replicas=1)
    holder = await rig.acquire(hello)
    waiting = rig.acquiring(hello, 3)
    await settle()
    with pytest.raises(NovaError) as refused:
        await rig.acquire(hello)
    assert (refused.value.code, refused.value.status, refused.value.retry_after_s) == ("queue_full", 503, 1)
    rig.release(holder)
    await rig.serve(waiting)
    await rig.fleet.close()


async def test_waiting_ends_at_the_shorter_of_the_nodes_and_the_callers_limit(rig: Rig) -> None:
    hello = make_snapshot(max_replicas=1)
    holder = await rig.acquire(hello)
    pool = rig.fleet.pool(hello)
    patient = asyncio.create_task(rig.fleet.wait(pool, None))
    hurried = asyncio.create_task(rig.fleet.wait(pool, rig.clock.monotonic() + 3))
    await rig.clock.advance(3.1)
    assert isinstance(error_of(hurried), NovaError)
    assert error_of(hurried).code == "timeout"  # type: ignore[union-attr]
    assert not patient.done()
    await rig.clock.advance(7)
    assert error_of(patient).code == "queue_timeout"  # type: ignore[union-attr]
    rig.release(holder)
    assert rig.numbers()["waiting"] == 0


async def test_the_end_of_the_first_boot_is_awaited_a_little_longer(rig: Rig) -> None:
    """PO18: code that takes all its time to load is told so, instead of that no instance became free."""
    rig.backend.gate = asyncio.Event()
    told = asyncio.create_task(rig.acquire(make_snapshot()))
    await rig.clock.advance(10.5)
    rig.backend.init_error = FunctionError("Nova.InitError", "loading took too long")
    rig.backend.gate.set()
    with pytest.raises(LoadFailed) as failed:
        await told
    assert failed.value.error.message == "loading took too long"
    rig.backend.gate = asyncio.Event()
    untold = asyncio.create_task(rig.acquire(make_snapshot("other")))
    await rig.clock.advance(12.1)
    assert error_of(untold).code == "queue_timeout"  # type: ignore[union-attr]
    rig.backend.gate.set()


async def test_cancellation_storms_leave_nothing_behind(rig: Rig) -> None:
    """PO2: whoever leaves, whenever, the counters return to 0 and the next call is served."""
    rolls = random.Random(7)
    hello = make_snapshot(max_replicas=5, concurrency=2)
    for _ in range(30):
        tasks = rig.acquiring(hello, 40)
        for task in tasks:
            if rolls.random() < 0.5:
                await settle(rolls.randrange(3))
                task.cancel()
        for task in tasks:
            try:
                lease = await asyncio.wait_for(task, 20)
            except asyncio.CancelledError:
                continue
            if rolls.random() < 0.2:
                lease.member.instance.channel.lose()  # type: ignore[attr-defined]
                lease.retire(rig.clock.monotonic(), "crashed")
            else:
                rig.release(lease)
    await settle()
    numbers = rig.numbers()
    assert (numbers["inflight"], numbers["waiting"], numbers["booting"]) == (0, 0, 0)
    assert rig.backend.peak <= 5
    rig.release(await rig.acquire(hello))


async def test_idle_instances_are_stopped_and_empty_pools_forgotten(rig: Rig) -> None:
    await rig.warm(make_snapshot("brief", idle_ttl_s=5.0))
    await rig.warm(make_snapshot("usual"))
    await rig.clock.advance(21)
    assert [row["function"] for row in rig.numbers()["pools"]] == ["usual"]
    await rig.clock.advance(60)
    assert rig.numbers()["pools"] == []
    assert {reason for _, reason in rig.backend.stopped} == {"idle"}


async def test_an_instance_without_a_call_for_a_while_is_let_rest_once(rig: Rig) -> None:
    hello = make_snapshot(idle_ttl_s=3600.0)
    await rig.warm(hello, 2)
    await rig.clock.advance(9)
    assert rig.backend.rested == []
    lease = await rig.acquire(hello)
    rig.backend.restless = True
    await rig.clock.advance(10)
    assert rig.backend.rested == []
    rig.backend.restless = False
    await rig.clock.advance(20)
    (idle,) = rig.backend.rested
    called = lease.member.instance.instance_id
    assert idle != called, "one that has a call does not rest"
    rig.release(lease)
    await rig.clock.advance(30)
    assert rig.backend.rested == [idle, called]
    await rig.clock.advance(300)
    assert rig.backend.rested == [idle, called]


async def test_an_idle_instance_that_does_not_answer_is_retired(rig: Rig) -> None:
    hello = make_snapshot(idle_ttl_s=3600.0)
    await rig.warm(hello, 3)
    rig.backend.channels[1].alive = False
    await rig.clock.advance(31)
    assert rig.backend.pings == 3
    assert [reason for _, reason in rig.backend.stopped] == ["no answer"]
    assert rig.numbers()["ready"] == 2


async def test_a_crashed_instance_is_replaced_for_those_who_wait(rig: Rig) -> None:
    hello = make_snapshot(max_replicas=1)
    lease = await rig.acquire(hello)
    waiter = rig.acquiring(hello)[0]
    await settle()
    lease.member.instance.channel.lose()  # type: ignore[attr-defined]
    lease.retire(rig.clock.monotonic(), "crashed")
    fresh = await waiter
    assert fresh.member is not lease.member
    assert fresh.boot is not None
    rig.release(fresh)


async def test_closing_refuses_waiters_and_stops_everything() -> None:
    rig = Rig()
    hello = make_snapshot(max_replicas=2)
    held = await rig.acquire(hello)
    rig.backend.gate = asyncio.Event()
    waiting = rig.acquiring(hello, 3)
    await settle()
    await rig.fleet.close()
    await settle()
    assert {error.code for error in map(error_of, waiting) if isinstance(error, NovaError)} == {"draining"}
    assert not rig.backend.live
    assert rig.backend.creating == 0
    assert rig.fleet.size == 0
    held.retire(rig.clock.monotonic(), "crashed")
    with pytest.raises(NovaError, match="draining"):
        await rig.acquire(hello)
