"""``/metrics``: what the platform has counted, as JSON with plain names or as Prometheus text."""

from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from starlette.responses import Response

from nova.api.system import CallTotals, Metrics
from nova.api.table import Empty
from nova.domain.identity import Scope
from nova.http.handler import Req, handles

Platform = Callable[[Collection[str] | None], Awaitable[str]]
"""The platform's own gauges in the classic format; None: of every tenant."""
_EOF = b"# EOF\n"
"""The end of an OpenMetrics text."""
_TEXT_TYPES = ("text/plain", "application/openmetrics-text")


class InstanceTotals(Protocol):
    created: int
    stopped: int
    crashed: int
    from_snapshot: int


class Readings(Protocol):
    """What the execution plane tells. ``tenants`` None: everybody's numbers."""

    def prometheus(self, accept: str, tenants: Collection[str] | None) -> tuple[bytes, str]: ...

    def totals(self, tenants: Collection[str] | None) -> CallTotals: ...

    def functions(self, scope: Scope) -> dict[str, CallTotals]: ...

    def instances(self, tenants: Collection[str] | None) -> InstanceTotals: ...

    def uptime_s(self) -> float: ...


class ReadingHandlers:
    """A caller sees the series of its own tenants; the platform's own identities see all of them."""

    def __init__(self, readings: Readings, platform: Platform | None = None) -> None:
        """``platform`` gives the platform's own series besides, in a process that answers for all of it."""
        self._readings = readings
        self._platform = platform

    @handles("metrics.get")
    async def metrics(self, req: Req[Empty, Empty]) -> Metrics | Response:
        if wants_text(req.http.headers.get("accept", "")):
            return await self.prometheus(req)
        tenants = req.identity.visible_tenants
        instances = self._readings.instances(tenants)
        return Metrics(
            **self._readings.totals(tenants).model_dump(),
            vms_created=instances.created,
            vms_stopped=instances.stopped,
            vms_crashed=instances.crashed,
            snapshots_hit=instances.from_snapshot,
            uptime_s=self._readings.uptime_s(),
            functions=self._readings.functions(req.scope),
        )

    @handles("metrics.prometheus")
    async def prometheus(self, req: Req[Empty, Empty]) -> Response:
        tenants = req.identity.visible_tenants
        text, content_type = self._readings.prometheus(req.http.headers.get("accept", ""), tenants)
        if self._platform is not None:
            body, end = (text.removesuffix(_EOF), _EOF) if text.endswith(_EOF) else (text, b"")
            text = body + (await self._platform(tenants)).encode() + end
        return Response(text, headers={"content-type": content_type, "cache-control": "no-store"})


def wants_text(accept: str) -> bool:
    """Does the caller name a text format, and not JSON before it?"""
    for part in accept.lower().split(","):
        media_type = part.partition(";")[0].strip()
        if media_type in _TEXT_TYPES:
            return True
        if media_type == "application/json":
            return False
    return False
