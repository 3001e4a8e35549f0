"""Handlers of the backends."""

from nova.api.backends import BackendList, BackendView
from nova.api.table import Empty
from nova.execution.backends.base import Capabilities
from nova.execution.backends.router import BackendRouter
from nova.http.handler import Req, handles


class BackendHandlers:
    """What a router knows, looked at anew, as an answer."""

    def __init__(self, router: BackendRouter) -> None:
        self._router = router

    @handles("backend.list")
    async def list(self, req: Req[Empty, Empty]) -> BackendList:
        await self._router.look()
        found = self._router.capabilities
        ordered = sorted(found, key=lambda name: (not found[name].available, -found[name].strength, name))
        return BackendList(
            items=[_view(name, found[name], rank) for rank, name in enumerate(ordered, 1)],
            next_cursor=None,
            default_backend=self._router.default,
        )


def _view(name: str, found: Capabilities, rank: int) -> BackendView:
    return BackendView(
        name=name,
        available=found.available,
        reason=found.reason or None,
        rank=rank if found.available else None,
        isolation=found.isolation,
        enforces=dict(found.enforces),
        runtimes=None if found.runtimes is None else sorted(found.runtimes),
        snapshot=found.snapshot,
        template=found.template,
        reload=found.reload,
        layers=found.layers,
        volumes=found.volumes,
    )
