"""The workers of one ``nova up`` as one Invoker: calls run in the worker that owns the function, the others pass them on.

Workers find each other on unix sockets, through the same connections, reports and rules as planes on different hosts; only who
gets a call is decided otherwise: see :mod:`nova.domain.ownership`.
"""

from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.call import Accepted, AsyncOptions, CallRequest, CallResult
from nova.domain.identity import Scope
from nova.domain.node import NodeReport
from nova.domain.ownership import Ownership, function_of
from nova.domain.ports import Flight, Invoker, Starter, Streamer, Warmth
from nova.domain.stream import Sink
from nova.errors import NovaError
from nova.rpc.comets import Comets
from nova.rpc.methods import REPORT_S, Ports
from nova.rpc.placement import Key, Placement
from nova.rpc.roster import Comet
from nova.security.assertion import ADMITTED, HEADER, Assertions
from nova.security.guards import Caller
from nova.security.service import ServiceToken

_ADDRESS = "worker-"


def address_of(worker: int) -> str:
    """What a worker is called by the others, in logs and in the ``node`` label of its series."""
    return f"{_ADDRESS}{worker}"


class OwnerPlacement(Placement[Comet]):
    """Calls of a function go to its owner or wait for it: nobody else may run them."""

    def __init__(self, ownership: Ownership) -> None:
        super().__init__()
        self._ownership = ownership

    @property
    def alternatives(self) -> bool:
        return False

    def choose(self, key: Key | None, avoid: Collection[Comet] = ()) -> Comet | None:
        if key is None:
            return super().choose(key, avoid)
        address = self._owner(key)
        found = next((place for place in self.usable if place.address == address), None)
        return None if found in avoid else found

    def shares(self, places: Collection[Comet], key: Key, count: int) -> dict[Comet, int]:
        """Everything at the owner; of a function that is spread, each worker's part of it."""
        if key[:3] in self._ownership.spread:
            return super().shares(places, key, count)
        address = self._owner(key)
        return {place: count if place.address == address else 0 for place in places}

    def _owner(self, key: Key) -> str:
        return address_of(self._ownership.owner((key[0], key[1], key[2])))


class OwnedInvoker:
    """Implements Invoker, Starter and Streamer: runs what belongs here with ``local``, and lets ``workers`` do the rest."""

    def __init__(self, ownership: Ownership, local: Invoker, workers: Comets) -> None:
        self._here = ownership.here
        self._local = local
        self._begin = local.begin if isinstance(local, Starter) else None
        self._workers = workers

    def begin(self, call: CallRequest, done: Callable[[CallResult | NovaError], None]) -> Flight | None:
        """See :class:`~nova.domain.ports.Starter`; None also for a call that another worker runs."""
        if self._begin is None or not self._here(function_of(call)):
            return None
        return self._begin(call, done)

    async def invoke(self, call: CallRequest) -> CallResult:
        """See :class:`~nova.domain.ports.Invoker`."""
        if self._here(function_of(call)):
            return await self._local.invoke(call)
        return await self._workers.invoke(call)

    async def stream(self, call: CallRequest, sink: Sink) -> CallResult:
        """See :class:`~nova.domain.ports.Streamer`. Raises ``unsupported`` where the invoker behind it does not stream."""
        target: Any = self._local if self._here(function_of(call)) else self._workers
        if not isinstance(target, Streamer):
            raise NovaError("unsupported", "calls that stream are not available here")
        return await target.stream(call, sink)


class OwnerProxy:
    """An ASGI application: requests about one function (``/functions/{name}/…``), answered by the worker that owns it.

    Raises ``dependency_unavailable`` while that worker is not there.
    """

    def __init__(self, ownership: Ownership, workers: Comets) -> None:
        self._ownership = ownership
        self._workers = workers

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        admitted: tuple[Caller, Scope | None] = scope[ADMITTED]
        place = admitted[1] or Scope()
        _, _, rest = scope["path"].partition("/functions/")
        owner = address_of(self._ownership.owner((place.tenant, place.namespace, rest.partition("/")[0])))
        connection = self._workers.connections().get(owner)
        if connection is None:
            raise NovaError(
                "dependency_unavailable", "the worker of this function is being started again", retry_after_s=1
            )
        await connection.proxy(scope, receive, send)


class LocalConnection:
    """This worker as one of the workers, without a wire; see :class:`nova.rpc.remote.CometConnection`."""

    def __init__(self, ports: Ports, token: ServiceToken, assertions: Assertions, clock: Clock = SYSTEM_CLOCK) -> None:
        self._ports = ports
        self._token = token
        self._assertions = assertions
        self._clock = clock

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def invoke(self, call: CallRequest) -> CallResult:
        assert self._ports.invoker is not None
        return await self._ports.invoker.invoke(call)

    async def stream(self, call: CallRequest, sink: Sink) -> CallResult:
        invoker: Any = self._ports.invoker
        if not isinstance(invoker, Streamer):
            raise NovaError("unsupported", "calls that stream are not available here")
        return await invoker.stream(call, sink)

    async def accept(self, call: CallRequest, options: AsyncOptions) -> Accepted:
        assert self._ports.acceptor is not None
        return await self._ports.acceptor.accept(call, options)

    async def scale(self, scope: Scope, function: str, replicas: int, *, ttl_s: float) -> int:
        assert self._ports.scaler is not None
        return await self._ports.scaler.scale(scope, function, replicas, ttl_s=ttl_s)

    async def prewarm(
        self, scope: Scope, function: str, replicas: int, *, qualifier: str | None, ttl_s: float
    ) -> Warmth:
        assert self._ports.scaler is not None
        return await self._ports.scaler.prewarm(scope, function, replicas, qualifier=qualifier, ttl_s=ttl_s)

    async def evict(self, scope: Scope, function: str) -> int:
        assert self._ports.evict is not None
        return self._ports.evict(scope, function)

    async def proxy(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        assert self._ports.application is not None
        admitted: tuple[Caller, Scope | None] | None = scope.get(ADMITTED)
        if admitted is not None:
            rest = [pair for pair in scope["headers"] if pair[0] not in (HEADER, b"authorization")]
            proof = (HEADER, self._assertions.sign(*admitted).encode())
            scope = {**scope, "headers": [*rest, proof, (b"authorization", self._token.bearer)]}
        await self._ports.application(scope, receive, send)

    async def reports(self) -> AsyncIterator[NodeReport]:
        assert self._ports.report is not None
        while True:
            yield self._ports.report()
            await self._clock.sleep(REPORT_S)
