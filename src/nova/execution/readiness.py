"""Why can this function not be called? The steps of a call are tried up to the moment at which it would need an instance."""

from collections.abc import Callable
from typing import Protocol

from nova.api.readiness import Place, Readiness, Reason
from nova.api.table import Empty
from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.call import CallRequest
from nova.domain.function import FunctionSnapshot
from nova.domain.needs import Needs
from nova.errors import NovaError, not_found
from nova.execution.pool import Pool
from nova.execution.slots import LoadFailed, State
from nova.http.handler import Req, handles


class Catalog(Protocol):
    """What is needed of :class:`nova.execution.catalog.Catalog`."""

    async def resolve(self, call: CallRequest, deadline: float | None = None) -> FunctionSnapshot: ...


class Router(Protocol):
    """What is needed of :class:`nova.execution.backends.router.BackendRouter`."""

    async def check(self, backend: str, needs: Needs) -> str: ...


class ReadinessHandlers:
    """``pool`` gives the pool of a version on this node; ``draining`` tells whether the node takes calls at all."""

    def __init__(
        self,
        catalog: Catalog,
        router: Router,
        pool: Callable[[FunctionSnapshot], Pool],
        draining: Callable[[], bool],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._catalog = catalog
        self._router = router
        self._pool = pool
        self._draining = draining
        self._clock = clock

    @handles("function.readiness")
    async def readiness(self, req: Req[Empty, Empty]) -> Readiness:
        name = req.params["name"]
        try:
            snapshot = await self._snapshot(req)
        except NovaError as refusal:
            if refusal.code == "not_found":
                raise not_found("function", name) from None
            return _not_invokable(name, None, [_reason(refusal)])
        reasons = []
        backend = None
        try:
            backend = await self._router.check(snapshot.backend, Needs.of(snapshot))
        except NovaError as refusal:
            reasons = [Reason(code="unsupported", detail=e.message, field=e.field) for e in refusal.errors]
        if self._draining():
            reasons.append(Reason(code="draining", detail="the node takes no calls: it is drained or shuts down"))
        if reasons:
            return _not_invokable(name, snapshot, reasons)
        return self._standing(name, snapshot, backend)

    async def _snapshot(self, req: Req[Empty, Empty]) -> FunctionSnapshot:
        """Of the version that a call without a qualifier would run."""
        now = self._clock.monotonic()
        call = CallRequest(req.request_id, req.scope, req.params["name"], b"{}", req.identity, now)
        try:
            return await self._catalog.resolve(call, now)
        except NovaError as refusal:
            if refusal.code == "timeout":  # a call would wait for the build
                raise NovaError("build_pending", "the version that calls would run is still being built") from None
            raise

    def _standing(self, name: str, snapshot: FunctionSnapshot, backend: str | None) -> Readiness:
        pool = self._pool(snapshot)
        here = _place(pool, backend)
        reasons: list[Reason] = []
        warnings: list[Reason] = []
        if pool.failure is not None:
            hopeless = isinstance(pool.failure.cause, LoadFailed) or self._clock.monotonic() < pool.retry_at
            (reasons if hopeless and not pool.members else warnings).append(_failed(pool.failure.cause))
        if here.waiting:
            warnings.append(Reason(code="queue", detail=f"{here.waiting} calls wait for an instance"))
        full = snapshot.max_replicas and pool.size >= snapshot.max_replicas and not here.ready
        if full:
            detail = f"all {snapshot.max_replicas} instances that max_replicas allows are busy"
            warnings.append(Reason(code="capacity", detail=detail, field="max_replicas"))
        if reasons:
            found = _not_invokable(name, snapshot, reasons)
            return found.model_copy(update={"warnings": warnings, "here": here})
        return Readiness(
            function=name,
            invokable=True,
            state="warm" if here.ready or here.busy else "cold",
            version=snapshot.version,
            runtime=snapshot.runtime,
            warnings=warnings,
            here=here,
        )


def _not_invokable(name: str, snapshot: FunctionSnapshot | None, reasons: list[Reason]) -> Readiness:
    return Readiness(
        function=name,
        invokable=False,
        state="not invokable",
        version=None if snapshot is None else snapshot.version,
        runtime=None if snapshot is None else snapshot.runtime,
        reasons=reasons,
    )


def _place(pool: Pool, backend: str | None) -> Place:
    serving = [member for member in pool.members.values() if member.state is State.READY]
    busy = sum(bool(member.inflight) for member in serving)
    return Place(
        backend=backend,
        ready=len(serving) - busy,
        busy=busy,
        booting=pool.booting,
        waiting=len(pool.waiters),
    )


def _failed(cause: NovaError | LoadFailed) -> Reason:
    """Why the last boot failed."""
    if isinstance(cause, LoadFailed):
        return Reason(code="init_error", detail=f"the code does not load: {cause.error.type}: {cause.error.message}")
    return _reason(cause)


def _reason(refusal: NovaError) -> Reason:
    field = refusal.errors[0].field if refusal.errors else None
    return Reason(code=refusal.code, detail=refusal.detail, field=field)
