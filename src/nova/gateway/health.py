"""How every plane stands, as zenith sees it: what its health page and its readiness are made of."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import httpx
import structlog

from nova.api.system import Standing
from nova.clock import Clock
from nova.errors import NovaError
from nova.http.proxy import HttpProxy

log = structlog.get_logger(__name__)
FRESH_S = 2.0
"""An answer is given again for this long: probes of many callers cost the planes one."""
PROBE_S = 1.0
"""A plane that takes longer to answer counts as down."""
WORKERS = ("corona", "nebula", "aurora")
"""Planes that tell of themselves through their rows; one without a row is down."""
_STANDINGS: Mapping[str, Standing] = {"ok": "ok", "degraded": "degraded", "down": "down"}


class Standings:
    """Asks ``probes``, by plane, all at once; ``workers`` tells of the planes in :data:`WORKERS`.

    Calling it answers within :data:`PROBE_S`, whatever does not answer, and never raises: a plane that cannot be asked is
    down. Zenith itself is ok, because it answers.
    """

    def __init__(
        self,
        probes: Mapping[str, Callable[[], Awaitable[Standing]]],
        workers: Callable[[], Awaitable[Mapping[str, Standing]]],
        clock: Clock,
    ) -> None:
        self._probes = dict(probes)
        self._workers = workers
        self._clock = clock
        self._lock = asyncio.Lock()
        self._known: dict[str, Standing] = {}
        self._asked_at: float | None = None

    async def __call__(self) -> Mapping[str, Standing]:
        async with self._lock:
            now = self._clock.monotonic()
            if self._asked_at is None or now - self._asked_at >= FRESH_S:
                self._known = await self._ask()
                self._asked_at = self._clock.monotonic()
        return self._known

    async def _ask(self) -> dict[str, Standing]:
        workers, standings = await asyncio.gather(
            self._ask_workers(), asyncio.gather(*(self._ask_one(*probe) for probe in self._probes.items()))
        )
        found: dict[str, Standing] = {"zenith": "ok", **dict(zip(self._probes, standings, strict=True))}
        return {**found, **{name: workers.get(name, "down") for name in WORKERS}}

    async def _ask_one(self, name: str, probe: Callable[[], Awaitable[Standing]]) -> Standing:
        try:
            async with asyncio.timeout(PROBE_S):
                return await probe()
        except (TimeoutError, OSError, NovaError, httpx.TransportError) as exc:
            log.info("plane does not answer", plane=name, error=repr(exc))
            return "down"

    async def _ask_workers(self) -> Mapping[str, Standing]:
        try:
            async with asyncio.timeout(PROBE_S):
                return await self._workers()
        except (TimeoutError, OSError, NovaError) as exc:
            log.info("workers cannot be asked for", error=repr(exc))
            return {}


async def standing_of(plane: HttpProxy) -> Standing:
    """What the health page of a plane says of it. A plane that drains is degraded: its successor takes the next request."""
    answer = await plane.get("/health", timeout_s=PROBE_S)
    try:
        said = answer.json()["status"]
    except (ValueError, KeyError, TypeError):
        return "down"
    return _STANDINGS.get(said, "down")
