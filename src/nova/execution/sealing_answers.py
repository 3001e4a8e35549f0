"""Answers about functions that are kept loaded on this node."""

from nova.api.snapshots import SnapshotQuery, SnapshotsQuery, SnapshotView
from nova.api.table import Empty, Page
from nova.clock import Clock
from nova.domain.call import CallRequest
from nova.domain.function import FunctionSnapshot
from nova.errors import NovaError
from nova.execution.boots import Booter
from nova.execution.catalog import Catalog
from nova.execution.sealing import KeptFunction, Sealer
from nova.http import paging
from nova.http.handler import Req, handles
from nova.security import access


class SnapshotHandlers:
    def __init__(self, sealer: Sealer, catalog: Catalog, booter: Booter, clock: Clock, node: str) -> None:
        self._sealer = sealer
        self._catalog = catalog
        self._booter = booter
        self._clock = clock
        self._node = node

    @handles("snapshot.list")
    async def list_snapshots(self, req: Req[Empty, SnapshotsQuery]) -> Page[SnapshotView]:
        query = req.query
        after = paging.start(query.cursor)
        seen = [
            kept
            for kept in self._sealer.of(req.scope, query.function)
            if access.allowed(req.identity, "snapshot:read", kept.snapshot.name)
            and (after is None or (kept.created_at, kept.spec.instance_id) < after)
        ]
        shown, cursor = paging.cut(seen, query.limit, lambda kept: (kept.created_at, kept.spec.instance_id))
        return Page(items=[self._view(kept) for kept in shown], next_cursor=cursor)

    @handles("snapshot.create")
    async def create(self, req: Req[Empty, SnapshotQuery]) -> SnapshotView:
        snapshot = await self._resolve(req)
        backend, spec = await self._booter.plan(snapshot)
        return self._view(self._sealer.begin(backend, snapshot, spec))

    @handles("snapshot.delete")
    async def delete(self, req: Req[Empty, SnapshotQuery]) -> None:
        if not await self._sealer.drop(req.scope, req.params["name"], req.query.version):
            raise NovaError("not_found", f"no version of {req.params['name']} has a snapshot on this node")

    async def _resolve(self, req: Req[Empty, SnapshotQuery]) -> FunctionSnapshot:
        version = req.query.version
        call = CallRequest(
            request_id=req.request_id,
            scope=req.scope,
            function=req.params["name"],
            payload=b"null",
            identity=req.identity,
            received=self._clock.monotonic(),
            qualifier=None if version is None else str(version),
        )
        return await self._catalog.resolve(call)

    def _view(self, kept: KeptFunction) -> SnapshotView:
        return SnapshotView(
            function=kept.snapshot.name,
            version=kept.snapshot.version,
            backend=kept.backend.name,
            node=self._node,
            kind="zygote",
            status=kept.state,
            reason=kept.reason or None,
            memory_mb=round(kept.memory_bytes / (1 << 20), 1),
            state_mb=0,
            created_at=kept.created_at,
            hits=kept.hits,
        )
