"""Provisioned windows over HTTP: what stands ready now, and when that changes."""

from nova.api.prewarm import OpeningsQuery, OpeningView, Provisioned
from nova.clock import Clock
from nova.domain.windows import replicas_at, upcoming
from nova.errors import not_found
from nova.http.handler import Req, handles
from nova.store.functions import FunctionStore


class WindowHandlers:
    def __init__(self, functions: FunctionStore, clock: Clock) -> None:
        self._functions = functions
        self._clock = clock

    @handles("function.provisioned")
    async def provisioned(self, req: Req[None, OpeningsQuery]) -> Provisioned:
        name = req.params["name"]
        function = await self._functions.lookup(req.scope, name)
        if function is None:
            raise not_found("function", name)
        recorded, now = function.settings.recorded, self._clock.now()
        return Provisioned(
            replicas=max(recorded.min_replicas, replicas_at(recorded.provisioned, now)),
            windows=[
                OpeningView(begins_at=o.begins_at, ends_at=o.ends_at, replicas=o.replicas, name=o.name)
                for o in upcoming(recorded.provisioned, now, req.query.count)
            ],
        )
