"""``prewarm`` over HTTP: in the process that has the instances, and in zenith, which asks every comet for its share."""

from nova.api.prewarm import Prewarm, Prewarmed
from nova.api.table import Empty
from nova.domain.ports import Scaler
from nova.http.handler import Req, handles


class PrewarmHandlers:
    def __init__(self, scaler: Scaler) -> None:
        self._scaler = scaler

    @handles("function.prewarm")
    async def prewarm(self, req: Req[Prewarm, Empty]) -> Prewarmed:
        body = req.body
        there = await self._scaler.prewarm(
            req.scope, req.params["name"], body.target_replicas, qualifier=body.qualifier, ttl_s=body.ttl_s
        )
        return Prewarmed(target=body.target_replicas, ready=there.ready, starting=there.starting)
