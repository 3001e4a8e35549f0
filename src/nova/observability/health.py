"""Health of a process that speaks HTTP: may it live, may it get calls, has it started, and how are the parts it sees."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping
from time import perf_counter
from typing import Any

from nova import __version__
from nova.api.system import Health, PoolHealth, PostgresHealth, Probe, Standing
from nova.api.table import Empty
from nova.clock import Clock
from nova.http.handler import Answer, Req, handles
from nova.security import access

PING_TIMEOUT_S = 2.0
"""A database that takes longer to say hello counts as gone."""


Planes = Callable[[], Mapping[str, Standing] | Awaitable[Mapping[str, Standing]]]
Pools = Callable[[], Mapping[str, Any] | Awaitable[PoolHealth]]
"""``Fleet.stats`` of this process, or what several together have."""
NEEDED = ("nova", "comet")
"""Without these planes nothing can be changed or called; the others are workers, whose failure is only shown."""


class HealthHandlers:
    """The probes.

    ``ping`` asks PostgreSQL for a sign of life, ``migrated`` whether its schema is current; ``draining`` is true while the
    server shuts down; ``planes`` gives the standing of each plane that this process has or sees, and must not take long;
    ``fleet`` the pools (``Fleet.stats``), None in a process that has none. One of ``needed`` that is among the planes and
    down makes the process not ready.
    """

    def __init__(
        self,
        *,
        ping: Callable[[], Awaitable[bool]],
        migrated: Callable[[], Awaitable[bool]],
        draining: Callable[[], bool],
        planes: Planes,
        clock: Clock,
        fleet: Pools | None = None,
        needed: Collection[str] = NEEDED,
    ) -> None:
        self._ping = ping
        self._migrated = migrated
        self._draining = draining
        self._planes = planes
        self._fleet = fleet
        self._needed = needed
        self._clock = clock
        self._started_at = clock.monotonic()
        self._has_started = False

    @handles("health.live")
    async def live(self, req: Req[Empty, Empty]) -> Probe:
        return Probe(status="ok")

    @handles("health.ready")
    async def ready(self, req: Req[Empty, Empty]) -> Answer:
        if self._draining():
            return _not_yet("the server is shutting down")
        if await self._latency() is None:
            return _not_yet("PostgreSQL does not answer")
        if missing := self._missing(await self._standings()):
            return _not_yet(f"{' and '.join(missing)} cannot take requests")
        return Answer(Probe(status="ok"))

    @handles("health.startup")
    async def startup(self, req: Req[Empty, Empty]) -> Answer:
        if not self._has_started:
            if await self._latency() is None:
                return _not_yet("PostgreSQL does not answer")
            if not await self._migrated():
                return _not_yet("the schema is not current")
            self._has_started = True
        return Answer(Probe(status="ok"))

    @handles("live")
    async def short_live(self, req: Req[Empty, Empty]) -> Probe:
        return await self.live(req)

    @handles("ready")
    async def short_ready(self, req: Req[Empty, Empty]) -> Answer:
        return await self.ready(req)

    @handles("startup")
    async def short_startup(self, req: Req[Empty, Empty]) -> Answer:
        return await self.startup(req)

    @handles("health.get")
    async def health(self, req: Req[Empty, Empty]) -> Answer:
        latency_ms, planes = await asyncio.gather(self._latency(), self._standings())
        status = self._status(latency_ms, planes)
        body = Health(status=status)
        if access.allowed(req.identity, "metrics:read", None):
            body = Health(
                status=status,
                version=__version__,
                uptime_s=self._clock.monotonic() - self._started_at,
                postgres=PostgresHealth(ok=latency_ms is not None, latency_ms=latency_ms),
                pool=await self._pool(),
                planes=planes,
            )
        return Answer(body, status=503 if status == "down" else 200)

    def _status(self, latency_ms: float | None, planes: Mapping[str, Standing]) -> Standing:
        if latency_ms is None or self._missing(planes):
            return "down"
        if self._draining() or any(standing != "ok" for standing in planes.values()):
            return "degraded"
        return "ok"

    async def _standings(self) -> dict[str, Standing]:
        found = self._planes()
        return dict(await found if inspect.isawaitable(found) else found)

    def _missing(self, planes: Mapping[str, Standing]) -> list[str]:
        return sorted(name for name in self._needed if planes.get(name) == "down")

    async def _pool(self) -> PoolHealth | None:
        if self._fleet is None:
            return None
        found = self._fleet()
        if inspect.isawaitable(found):
            return await found
        pools = found["pools"]
        return PoolHealth(
            pools=len(pools),
            instances=sum(pool["instances"] for pool in pools),
            busy=sum(pool["busy"] for pool in pools),
            queued=sum(pool["waiting"] for pool in pools),
        )

    async def _latency(self) -> float | None:
        """Milliseconds that PostgreSQL took to answer, or None when it did not."""
        began = perf_counter()
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                answers = await self._ping()
        except TimeoutError:
            return None
        return round((perf_counter() - began) * 1000, 3) if answers else None


def _not_yet(reason: str) -> Answer:
    return Answer(Probe(status="down", reason=reason), status=503)
