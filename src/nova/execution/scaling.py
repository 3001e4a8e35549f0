"""Instances that stand ready although nobody calls: the port :class:`~nova.domain.ports.Scaler` of this process."""

from typing import Protocol

from nova.clock import Clock
from nova.domain.call import CallRequest
from nova.domain.function import FunctionSnapshot
from nova.domain.identity import Identity, Scope
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
        now = self._clock.monotonic()
        live = CallRequest(
            request_id=new_id(),
            scope=scope,
            function=function,
            payload=b"{}",
            identity=Identity("service:corona", frozenset({scope.tenant})),
            received=now,
        )
        snapshot = self._catalog.peek(live) or await self._catalog.resolve(live, now)
        return self._fleet.keep(snapshot, replicas, now + ttl_s)
