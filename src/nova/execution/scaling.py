"""Instances that stand ready although nobody calls: the port :class:`~nova.domain.ports.Scaler` of this process."""

from typing import Protocol

from nova.clock import Clock
from nova.domain.call import CallRequest
from nova.domain.function import FunctionSnapshot
from nova.domain.identity import Identity, Scope
from nova.domain.ports import Warmth
from nova.errors import invalid
from nova.execution.fleet import InstanceFleet
from nova.ids import new_id


class Catalog(Protocol):
    """What is needed of :class:`nova.execution.catalog.Catalog`."""

    def peek(self, call: CallRequest) -> FunctionSnapshot | None: ...

    async def resolve(self, call: CallRequest, deadline: float | None = None) -> FunctionSnapshot: ...


class LocalScaler:
    """Gives the pool of a function's live version a floor that holds for a while."""

    def __init__(self, catalog: Catalog, fleet: InstanceFleet, clock: Clock) -> None:
        self._catalog = catalog
        self._fleet = fleet
        self._clock = clock

    async def scale(self, scope: Scope, function: str, replicas: int, *, ttl_s: float) -> int:
        """See :class:`~nova.domain.ports.Scaler`. ``max_replicas`` and the room on this node bound it.

        Raises ``not_found``, ``build_pending``, ``build_failed``, ``draining``.
        """
        snapshot = await self._snapshot(scope, function, None)
        return self._fleet.keep(snapshot, replicas, self._clock.monotonic() + ttl_s)

    async def prewarm(
        self, scope: Scope, function: str, replicas: int, *, qualifier: str | None, ttl_s: float
    ) -> Warmth:
        """See :class:`~nova.domain.ports.Scaler`. Of an alias with several versions one is drawn."""
        snapshot = await self._snapshot(scope, function, qualifier)
        if snapshot.max_replicas and replicas > snapshot.max_replicas:
            raise invalid("target_replicas", f"at most max_replicas, which is {snapshot.max_replicas}")
        pool = self._fleet.prewarm(snapshot, replicas, self._clock.monotonic() + ttl_s)
        return Warmth(pool.serving - pool.booting, pool.booting) if pool is not None else Warmth(0, 0)

    async def _snapshot(self, scope: Scope, function: str, qualifier: str | None) -> FunctionSnapshot:
        """What a call would run, without waiting for a build."""
        now = self._clock.monotonic()
        call = CallRequest(
            request_id=new_id(),
            scope=scope,
            function=function,
            payload=b"{}",
            identity=Identity("service:corona", frozenset({scope.tenant})),
            received=now,
            qualifier=qualifier,
        )
        return self._catalog.peek(call) or await self._catalog.resolve(call, now)
