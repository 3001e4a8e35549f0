"""Handlers of the cluster: its processes and who leads what. What an operator says reaches the process through its own row."""

from collections.abc import Mapping
from typing import Any

from nova.api.cluster import MAX_LABELS, LeaderInfo, Node, NodeLoad, NodePatch, NodeQuery
from nova.api.table import Empty, Page
from nova.errors import NovaError, invalid, not_found
from nova.http import paging
from nova.http.handler import Req, handles
from nova.store import leases
from nova.store.db import Database
from nova.store.nodes import NodeRecord, NodeStore


class ClusterHandlers:
    def __init__(self, db: Database, nodes: NodeStore) -> None:
        self._db = db
        self._nodes = nodes

    @handles("node.list")
    async def list(self, req: Req[Empty, NodeQuery]) -> Page[Node]:
        query = req.query
        after = paging.start(query.cursor)
        rows = await self._nodes.page(plane=query.plane, state=query.state, after=after, limit=query.limit + 1)
        shown, cursor = paging.cut(rows, query.limit, lambda record: (record.started_at, record.id))
        return Page(items=[_node(record) for record in shown], next_cursor=cursor)

    @handles("node.get")
    async def get(self, req: Req[Empty, Empty]) -> Node:
        record = await self._nodes.get(req.params["id"])
        if record is None:
            raise not_found("node", req.params["id"])
        return _node(record)

    @handles("node.patch")
    async def patch(self, req: Req[NodePatch, Empty]) -> Node:
        node_id, said = req.params["id"], req.body.model_fields_set
        async with self._db.transaction() as conn:
            record = await self._nodes.lock(conn, node_id)
            if record is None:
                raise not_found("node", node_id)
            if record.gone:
                raise NovaError("invalid_state", f"node {record.name!r} is gone: it would not hear of it")
            state = (req.body.state or "active") if "state" in said else record.state
            labels = _merged(record.labels, req.body.labels) if "labels" in said else record.labels
            changed = await self._nodes.change(conn, node_id, state=state, labels=labels)
        if changed is None:
            raise not_found("node", node_id)
        return _node(changed)

    @handles("node.delete")
    async def delete(self, req: Req[Empty, Empty]) -> None:
        """A process that lives would only write its row again."""
        node_id = req.params["id"]
        async with self._db.transaction() as conn:
            record = await self._nodes.lock(conn, node_id)
            if record is None:
                raise not_found("node", node_id)
            if not record.gone:
                raise NovaError("invalid_state", f"node {record.name!r} is alive: stop its process first")
            await self._nodes.delete(conn, node_id)

    @handles("cluster.leaders")
    async def leaders(self, req: Req[Empty, Empty]) -> Page[LeaderInfo]:
        """All on one page: there is one for each duty."""
        return Page(
            items=[
                LeaderInfo(
                    duty=leader.duty,
                    owner=leader.owner,
                    node=leader.node,
                    fence=leader.fence,
                    until=leader.until,
                    acquired_at=leader.acquired_at,
                )
                for leader in await leases.leaders(self._db)
            ]
        )


def _merged(labels: Mapping[str, str], patch: Mapping[str, str | None] | None) -> dict[str, str]:
    merged: dict[str, str | None] = {**labels, **(patch or {})} if patch is not None else {}
    kept = {name: value for name, value in merged.items() if value is not None}
    if len(kept) > MAX_LABELS:
        raise invalid("labels", f"at most {MAX_LABELS}")
    return kept


def _node(record: NodeRecord) -> Node:
    info, load = record.info, record.load

    def figure(name: str) -> Any:
        return load.get(name, info.get(name))

    return Node(
        id=record.id,
        plane=record.plane,
        name=record.name,
        address=record.address,
        state="gone" if record.gone else record.state,
        cpu_cores=info.get("cpu_cores"),
        memory_mb=info.get("memory_mb"),
        max_vms=figure("max_vms"),
        active_vms=figure("active_vms"),
        queue_depth=figure("queue_depth"),
        version=info.get("version"),
        arch=info.get("arch"),
        backends=sorted(info.get("backends", ())),
        labels=record.labels,
        load=NodeLoad(**{name: load[name] for name in NodeLoad.model_fields if name in load}),
        started_at=record.started_at,
        last_heartbeat=record.last_heartbeat,
        lease_until=record.lease_until,
    )
