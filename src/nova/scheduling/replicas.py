"""The duty that keeps ``min_replicas`` instances of a function ready, more in its provisioned windows, on whichever comets
there are.

It asks again and again, each time for a while only: when nobody leads any more, the wish runs out by itself and idle
instances go their usual way.
"""

import asyncio
from typing import Protocol

import structlog

from nova.clock import Clock
from nova.domain.identity import Scope
from nova.domain.ports import Scaler
from nova.errors import NovaError
from nova.store.db import Connection, Database
from nova.store.schedules import KeptReady, kept_ready

log = structlog.get_logger(__name__)
INTERVAL_S = 2.0
TTL_S = 5 * INTERVAL_S
"""How long a wish holds without being repeated."""
PAGE = 500
AT_ONCE = 8
"""Functions that are asked for at the same time."""


class Fence(Protocol):
    """The proof of leading (:class:`nova.work.leader.Fence`)."""

    @property
    def held(self) -> bool: ...

    async def check(self, conn: Connection) -> None: ...


class Replicas:
    """:meth:`lead` is the body of the duty."""

    def __init__(self, db: Database, scaler: Scaler, clock: Clock) -> None:
        self._db = db
        self._scaler = scaler
        self._clock = clock
        self._wanted: dict[tuple[Scope, str], int] = {}
        self._refused: set[tuple[Scope, str]] = set()

    async def lead(self, fence: Fence) -> None:
        """Runs until it is cancelled or another process leads. Raises ``dependency_unavailable``."""
        self._wanted.clear()
        while fence.held:
            await self._reconcile()
            await self._clock.sleep(INTERVAL_S)

    async def _reconcile(self) -> None:
        """One look at every function that wants instances; those that want none any more are told so."""
        now = self._clock.now()
        entries = [(entry.scope, entry.name, entry.replicas(now)) for entry in await self._all()]
        wanted = {(scope, name): replicas for scope, name, replicas in entries if replicas}
        wishes = {key: 0 for key in self._wanted if key not in wanted} | wanted
        self._wanted = wanted
        turn = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._ask(turn, *key, replicas) for key, replicas in wishes.items()))
        self._refused &= wishes.keys()

    async def _all(self) -> list[KeptReady]:
        found: list[KeptReady] = []
        while True:
            page = await kept_ready(self._db, after=found[-1].id if found else None, limit=PAGE)
            found += page
            if len(page) < PAGE:
                return found

    async def _ask(self, turn: asyncio.Semaphore, scope: Scope, name: str, replicas: int) -> None:
        """One function that cannot be served keeps no other from it."""
        async with turn:
            try:
                await self._scaler.scale(scope, name, replicas, ttl_s=TTL_S)
            except NovaError as exc:
                if (scope, name) not in self._refused:  # said once, not each two seconds
                    log.warning("instances cannot be kept ready", function=name, tenant=scope.tenant, error=str(exc))
                self._refused.add((scope, name))
            else:
                self._refused.discard((scope, name))
