"""Random histories: whatever happens in whatever order, the pools' books balance."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from nova.domain.identity import Scope
from nova.errors import FunctionError, NovaError
from nova.execution.pool import Pool
from nova.execution.slots import Lease, LoadFailed, PoolMoved, State
from tests.execution.fakes import make_snapshot
from tests.execution.test_pool import Rig
from tests.mock_clock import settle

pytestmark = pytest.mark.anyio


class History:
    """One fleet, three functions, and every kind of event that can meet them."""

    def __init__(self, seed: int) -> None:
        self.rolls = random.Random(seed)
        self.rig = Rig(max_global_instances=7, max_queue_depth=25, max_queue_wait=3.0, idle_ttl=15)
        self.versions = dict.fromkeys("abc", 1)
        self.waiting: set[asyncio.Task[Lease]] = set()
        self.leases: list[Lease] = []
        self.outcomes: list[str] = []
        self.events: list[Callable[[], Awaitable[None]]] = [
            self.arrive,
            self.arrive,
            self.arrive,
            self.finish,
            self.finish,
            self.leave,
            self.crash,
            self.deploy,
            self.trouble,
            self.time_passes,
        ]

    def snapshot(self, name: str) -> object:
        shape = {"a": (1, 3), "b": (4, 2), "c": (1, 0)}[name]
        return make_snapshot(name, self.versions[name], concurrency=shape[0], max_replicas=shape[1])

    async def arrive(self) -> None:
        for _ in range(self.rolls.randrange(1, 6)):
            snapshot = self.snapshot(self.rolls.choice("abc"))
            task = asyncio.create_task(self.rig.acquire(snapshot))  # type: ignore[arg-type]
            self.waiting.add(task)
            task.add_done_callback(self.came)

    def came(self, task: "asyncio.Task[Lease]") -> None:
        self.waiting.discard(task)
        if task.cancelled():
            self.outcomes.append("left")
        elif (error := task.exception()) is None:
            self.outcomes.append("served")
            self.leases.append(task.result())
        else:
            assert isinstance(error, NovaError | LoadFailed | PoolMoved), error
            self.outcomes.append(error.code if isinstance(error, NovaError) else type(error).__name__)

    def take_lease(self) -> Lease | None:
        return self.leases.pop(self.rolls.randrange(len(self.leases))) if self.leases else None

    async def finish(self) -> None:
        if lease := self.take_lease():
            now = self.rig.clock.monotonic()
            if lease.member.instance.channel.usable:
                lease.release(now, self.rolls.random())
            else:
                lease.retire(now, "crashed")

    async def leave(self) -> None:
        if self.waiting:
            self.rolls.choice(sorted(self.waiting, key=lambda task: task.get_name())).cancel()

    async def crash(self) -> None:
        if self.rig.backend.live:
            self.rolls.choice(self.rig.backend.channels).lose()

    async def deploy(self) -> None:
        name = self.rolls.choice("abc")
        self.versions[name] += 1
        self.rig.fleet.evict(Scope(), name, {self.snapshot(name).pool_key})  # type: ignore[attr-defined]

    async def trouble(self) -> None:
        backend = self.rig.backend
        backend.error = self.rolls.choice([None, None, NovaError("capacity", "no")])
        backend.init_error = self.rolls.choice([None, None, FunctionError("ImportError", "no")])

    async def time_passes(self) -> None:
        await self.rig.clock.advance(self.rolls.choice([0.02, 0.3, 2.0, 11.0]))

    def check(self) -> None:
        self.rig.numbers()
        assert self.rig.backend.peak <= 7
        for pool in self.rig.fleet._all():
            check_pool(pool)

    async def check_at_rest(self) -> None:
        """Every slot that counts as taken is in somebody's hands."""
        await settle()
        self.check()
        pools = set(self.rig.fleet._all())
        held = sum(pool.inflight for pool in pools)
        assert held == sum(1 for lease in self.leases if lease.member.pool in pools)

    async def end(self) -> None:
        """Nobody comes any more: everything must go back to nothing."""
        self.rig.backend.error = self.rig.backend.init_error = None
        while self.leases or self.waiting:
            await self.finish()
            await self.rig.clock.advance(0.05)
        await self.rig.clock.advance(120)
        assert self.rig.numbers() | {"pools": []} == self.rig.fleet.stats()
        assert self.rig.fleet.size == 0
        assert not self.rig.backend.live
        await self.rig.fleet.close()


def check_pool(pool: Pool) -> None:
    """The invariants that the warm path relies on."""
    assert pool.inflight >= 0
    free = [m for m in pool.members.values() if m.state is State.READY and m.inflight < m.concurrency]
    assert sorted(map(id, pool.available)) == sorted(map(id, free)), "available is exactly what has a free slot"
    assert not (pool.available and any(not waiter.done for waiter in pool.waiters)), "nobody waits in vain"
    limit = pool.snapshot.max_replicas
    assert not limit or pool.size <= limit


@pytest.mark.parametrize("seed", range(25))
async def test_any_history_leaves_the_books_balanced(seed: int) -> None:
    """PO2: no instance is lost or handed out twice; PO4: no bound is passed; every caller gets an answer."""
    history = History(seed)
    await history.rig.fleet.start()
    for turn in range(300):
        await history.rolls.choice(history.events)()
        await settle(history.rolls.randrange(6))
        history.check()
        if turn % 10 == 9:
            await history.check_at_rest()
    await history.end()
    assert {"served", "left"} <= set(history.outcomes)
