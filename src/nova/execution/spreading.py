"""A function that is too hot for the worker that owns it is spread: every worker runs its part of ``max_replicas`` instances.

The owner decides, once a second, from how busy its own thread is. Before the others may boot anything it comes down to its own
part, and before it takes the whole again the others have none left; so the bound holds at every moment. An owner that was
killed asks the others what was spread before it serves again.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.identity import Scope
from nova.domain.ownership import Function, Ownership
from nova.errors import NovaError
from nova.execution.backends.base import Instance
from nova.execution.catalog import Catalog
from nova.execution.demand import Demand
from nova.execution.fleet import InstanceFleet
from nova.execution.pool import Pool
from nova.execution.slots import State
from nova.service import Background

log = structlog.get_logger(__name__)
TICK_S = 1.0
BUSY_TICKS = 2
HOT = 0.25
"""of all calls here must be the function's"""
QUIET_PER_S = 50
QUIET_TICKS = 30
"""A function that had fewer calls than this here, for so long, is gathered again."""
SHRINK_S = 10.0
GATHER_S = 30.0
_LOOK_S = 0.01


class Others(Protocol):
    """The other workers."""

    async def tell(self, said: dict[str, Any]) -> Sequence[dict[str, Any]]:
        """What each of them answers. Raises NovaError unless every one does."""
        ...


class Spreading:
    """A service. ``said`` answers what another worker asks."""

    def __init__(
        self,
        ownership: Ownership,
        catalog: Catalog,
        fleet: InstanceFleet,
        others: Others,
        *,
        busy: float,
        clock: Clock = SYSTEM_CLOCK,
        demand: Demand | None = None,
    ) -> None:
        """``busy``: the share of the time that the owner's thread runs, or waits for a processor, which is too much."""
        self._ownership = ownership
        self._catalog = catalog
        self._fleet = fleet
        self._others = others
        self._clock = clock
        self._demand = demand or Demand(clock)
        self._limit = busy
        self._busy = 0
        self._quiet: Counter[Function] = Counter()
        self._calls: Counter[Function] = Counter()
        self._tasks = Background("spreading")

    async def start(self) -> None:
        self._tasks.spawn("watch", self._watch())

    async def close(self) -> None:
        await self._tasks.close()

    def quick_and_spread(self) -> list[Instance]:
        """See :class:`nova.execution.homes.Busy`."""
        return [
            member.instance
            for pool in self._fleet.paced()
            if _served(pool) in self._ownership.spread
            for member in pool.members.values()
        ]

    # As one of the others

    async def said(self, said: dict[str, Any]) -> dict[str, Any]:
        """Answer an owner: ``spread`` a function, ``gather`` it, or tell which of ``mine`` are spread."""
        ownership = self._ownership
        if "mine" in said:
            return {"spread": [f for f in ownership.spread if ownership.owner(f) == said["mine"]]}
        if "spread" in said:
            for function in map(_function, said["spread"]):
                if function not in ownership.spread:
                    self._set(function, spread=True)
        if "gather" in said:
            await self._leave(_function(said["gather"]))
        return {}

    async def _leave(self, function: Function) -> None:
        """Have no instance of it any more. Calls that wait here already are served first; no new ones come."""
        scope, name = Scope(function[0], function[1]), function[2]
        self._set(function, spread=False)
        async with asyncio.timeout(GATHER_S):
            while self._fleet.has_pools(scope, name):
                rows = self._fleet.stats()["pools"]
                if not any(row["waiting"] for row in rows if _is(row, function)):
                    self._fleet.evict(scope, name, ())
                await self._clock.sleep(_LOOK_S)

    def _set(self, function: Function, *, spread: bool) -> None:
        spread_now = self._ownership.spread
        (spread_now.add if spread else spread_now.discard)(function)
        self._catalog.forget(Scope(function[0], function[1]), function[2])  # its snapshots carry our part

    # As an owner

    async def adopt(self) -> None:
        """After a restart: what was spread before is still. Raises NovaError unless every other worker answers."""
        for answer in await self._others.tell({"mine": self._ownership.own}):
            for function in answer["spread"]:
                self._set(_function(function), spread=True)

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(TICK_S)
            try:
                await self._look()
            except (NovaError, TimeoutError) as error:
                log.warning("cannot spread or gather now", error=str(error))

    async def _look(self) -> None:
        ownership = self._ownership
        rows = self._fleet.stats()["pools"]
        calls: Counter[Function] = Counter()
        for row in rows:
            calls[row["tenant"], row["namespace"], row["function"]] += row["calls"]
        new = calls - self._calls
        self._calls = calls
        self._busy = self._busy + 1 if self._demand.share() >= self._limit else 0
        own = [function for function in ownership.spread if ownership.owner(function) == ownership.own]
        if own:  # one that was restarted has forgotten it
            await self._others.tell({"spread": own})
        for function in own:
            self._quiet[function] = self._quiet[function] + 1 if new[function] < QUIET_PER_S * TICK_S else 0
            if self._quiet[function] >= QUIET_TICKS or not await self._fits(function):
                await self.gather(function)
        if self._busy >= BUSY_TICKS:
            self._busy = 0
            if (hot := await self._hottest(new)) is not None:
                await self.spread(hot)

    async def _hottest(self, new: "Counter[Function]") -> Function | None:
        """What most calls were for, if that would help."""
        ownership = self._ownership
        for function, count in new.most_common():
            if count < max(HOT * new.total(), QUIET_PER_S * TICK_S):
                break
            mine = ownership.owner(function) == ownership.own and function not in ownership.spread
            if mine and await self._fits(function):
                return function
        return None

    async def _fits(self, function: Function) -> bool:
        """Is there an instance for every worker?"""
        entry = await self._catalog.entry(Scope(function[0], function[1]), function[2])
        return entry is not None and self._ownership.may_spread(entry.record.settings.recorded.max_replicas)

    async def spread(self, function: Function) -> None:
        """Come down to our own part of it, then let the others have theirs."""
        self._set(function, spread=True)
        try:
            async with asyncio.timeout(SHRINK_S):
                while not await self._small(function):
                    await self._clock.sleep(_LOOK_S)
            await self._others.tell({"spread": [function]})
        except (NovaError, TimeoutError):
            await self.gather(function)
            raise
        self._quiet[function] = 0
        log.info("a function is spread over all workers", function=function[2])

    async def gather(self, function: Function) -> None:
        """Take it back, when the others have none of its instances any more. Raises NovaError when one does not say so."""
        await self._others.tell({"gather": function})
        self._set(function, spread=False)
        del self._quiet[function]
        log.info("a function is gathered again", function=function[2])

    async def _small(self, function: Function) -> bool:
        """Have our pools come down to our part? Instances beyond it go as soon as they are free."""
        scope, name = Scope(function[0], function[1]), function[2]
        entry = await self._catalog.entry(scope, name)
        if entry is None:
            return True
        there = {row["version"] for row in self._fleet.stats()["pools"] if _is(row, function)}
        pools = [self._fleet.pool(s) for s in list(entry.snapshots.values()) if s.version in there]
        for pool in pools:
            shrink(pool, pool.snapshot.max_replicas)
        return all(pool.size <= pool.snapshot.max_replicas or not pool.snapshot.max_replicas for pool in pools)


def shrink(pool: Pool, limit: int) -> None:
    """Let go of the instances beyond ``limit`` (0: none), those first that have nothing to do."""
    staying = [member for member in pool.members.values() if member.state is State.READY]
    over = len(staying) - limit if limit else 0
    for member in sorted(staying, key=lambda member: member.inflight)[: max(0, over)]:
        if not member.inflight:
            pool.discard(member, "drained")
            continue
        if member in pool.available:
            pool.available.remove(member)
        member.state = State.DRAINING


def _is(row: Mapping[str, Any], function: Function) -> bool:
    return not row["evicted"] and (row["tenant"], row["namespace"], row["function"]) == function


def _served(pool: Pool) -> Function:
    return pool.snapshot.scope.tenant, pool.snapshot.scope.namespace, pool.snapshot.name


def _function(said: Sequence[str]) -> Function:
    tenant, namespace, name = said
    return tenant, namespace, name
