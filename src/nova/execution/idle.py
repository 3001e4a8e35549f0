"""What becomes of instances that nobody calls: they rest, are asked whether they live, and end after some time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping

import structlog

from nova.clock import Clock
from nova.config import PoolSettings
from nova.execution.backends.base import Backend, Resting
from nova.execution.pool import Pool
from nova.execution.slots import Member
from nova.service import Background

log = structlog.get_logger(__name__)

REST_AFTER_S = 10.0
"""An instance without a call for so long is let rest."""
REST_LOOK_S = 2.0
REST_PAUSE_S = 0.004
"""From one to the next: it takes a backend as long, and nobody waits for it."""
PING_TIMEOUT_S = 2.0
FORGET_FAILURE_S = 60.0
"""An empty pool is kept this long after a failed boot, so that its pauses grow."""


class Idle:
    """Those of a fleet, whose ``pools`` (by key) and ``backends`` (by instance) these are."""

    def __init__(
        self, pools: dict[str, Pool], backends: Mapping[str, Backend], settings: PoolSettings, clock: Clock
    ) -> None:
        self._pools = pools
        self._backends = backends
        self._settings = settings
        self._clock = clock

    def watch(self, tasks: Background) -> None:
        tasks.spawn("sweep", self._every(lambda: self._settings.cleanup_interval, self._sweep))
        tasks.spawn("rest", self._every(lambda: REST_LOOK_S, self._let_rest))
        tasks.spawn("health", self._every(lambda: self._settings.health_check_interval, self._ping_all))

    def __iter__(self) -> Iterator[Member]:
        """Instances without a call."""
        return (member for pool in self._pools.values() for member in pool.available if not member.inflight)

    async def _every(self, interval: Callable[[], float], work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._clock.sleep(interval())
            await work()

    async def _sweep(self) -> None:
        """Stop what was idle for too long or is too old; forget pools that have nothing."""
        now = self._clock.monotonic()
        for pool in list(self._pools.values()):
            pool.mark(now)
            oldest = pool.snapshot.max_instance_age_s
            for member in list(pool.members.values()) if oldest else ():
                if now - member.started >= oldest:
                    pool.retire(member, "max_age")
            own = pool.snapshot.idle_ttl_s
            ttl = self._settings.idle_ttl if own is None else own
            spare = pool.serving - pool.kept(now)
            for member in [member for member in pool.available if not member.inflight]:
                if spare > 0 and now - member.last_used >= ttl:
                    pool.discard(member, "idle")
                    spare -= 1
            remembered = pool.failure is not None and now - pool.last_used < FORGET_FAILURE_S
            if pool.gone and not remembered:
                del self._pools[pool.key]

    async def _let_rest(self) -> None:
        """Those that have had nothing to do since their last call."""
        latest = self._clock.monotonic() - REST_AFTER_S
        for member in list(self):
            if member.last_used > latest or member.rested == member.calls or member.label != "ready":
                continue
            calls = member.calls
            backend = self._backends[member.instance.instance_id]
            if isinstance(backend, Resting):
                if not await self._rest(backend, member):
                    return  # it has enough to do; the others have their turn at the next look
                await self._clock.sleep(REST_PAUSE_S)
            member.rested = calls

    async def _rest(self, backend: Resting, member: Member) -> bool:
        try:
            return await backend.rest(member.instance)
        except Exception:
            log.exception("an instance could not be let rest", instance=member.instance.instance_id)
            return True

    async def _ping_all(self) -> None:
        """Ask every idle instance whether it lives, all at once; one that does not answer is replaced when needed."""
        await asyncio.gather(*(self._ping(member) for member in list(self)))

    async def _ping(self, member: Member) -> None:
        try:
            alive = await member.instance.channel.ping(PING_TIMEOUT_S)
        except Exception:
            log.exception("a ping failed", instance=member.instance.instance_id)
            alive = False
        if not alive:
            member.pool.discard(member, "no answer")
