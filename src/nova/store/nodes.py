"""The ``cluster_nodes`` table: each process of a plane writes its own row and renews it.

Whatever others must learn at once (a process came or went, an operator drains one) notifies :attr:`Channel.NODES` with the
id; renewals do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from nova.domain.node import LEASE_S, NodeState
from nova.store.db import Connection, Database, Queries, Row
from nova.store.listen import Channel

_sql = Queries("nodes")


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One process. ``gone``: its lease ran out, so it is dead or cut off."""

    id: str
    plane: str
    name: str
    address: str
    state: NodeState
    info: dict[str, Any]
    load: dict[str, Any]
    labels: dict[str, str]
    started_at: datetime
    last_heartbeat: datetime
    lease_until: datetime
    gone: bool


class NodeStore:
    def __init__(self, db: Database) -> None:
        self.db = db

    async def register(
        self,
        node_id: str,
        plane: str,
        name: str,
        address: str,
        *,
        info: Mapping[str, Any],
        load: Mapping[str, Any],
        labels: Mapping[str, str],
    ) -> NodeRecord:
        """Write the row of a process; on one that is there already only the lease and the load are new."""
        async with self.db.transaction() as conn:
            row = await conn.one(
                _sql.register,
                id=node_id,
                plane=plane,
                name=name,
                address=address,
                info=Jsonb(dict(info)),
                load=Jsonb(dict(load)),
                labels=Jsonb(dict(labels)),
                lease_s=LEASE_S,
            )
            await conn.notify(Channel.NODES, node_id)
        assert row is not None
        return NodeRecord(**row)

    async def renew(self, node_id: str, load: Mapping[str, Any]) -> NodeRecord | None:
        """Prolong the lease; None when the row is not there any more."""
        return _record(await self.db.one(_sql.renew, id=node_id, load=Jsonb(dict(load)), lease_s=LEASE_S))

    async def remove(self, node_id: str) -> bool:
        """Take a process off the list; False when it was not there."""
        async with self.db.transaction() as conn:
            return await self.delete(conn, node_id)

    async def forget_gone(self, older_s: float) -> int:
        """Delete the rows of processes whose lease ran out more than ``older_s`` seconds ago; how many."""
        return await self.db.run(_sql.forget_gone, older_s=older_s)

    async def alive(self, plane: str) -> list[NodeRecord]:
        """The processes of a plane that renewed in time, the oldest first."""
        return [NodeRecord(**row) for row in await self.db.fetch(_sql.alive, plane=plane)]

    async def telling(self) -> list[NodeRecord]:
        """The processes that are there and wrote their series into their rows."""
        return [NodeRecord(**row) for row in await self.db.fetch(_sql.telling)]

    async def get(self, node_id: str) -> NodeRecord | None:
        return _record(await self.db.one(_sql.get_node, id=node_id))

    async def page(
        self, *, plane: str | None, state: str | None, after: tuple[datetime, str] | None, limit: int
    ) -> list[NodeRecord]:
        """Newest first, after (started_at, id). ``state`` may also be ``gone``."""
        at, node_id = after or (None, None)
        rows = await self.db.fetch(
            _sql.list_nodes, plane=plane, state=state, after_at=at, after_id=node_id, limit=limit
        )
        return [NodeRecord(**row) for row in rows]

    async def lock(self, conn: Connection, node_id: str) -> NodeRecord | None:
        """The row, kept from other writers until the transaction ends."""
        return _record(await conn.one(_sql.lock_node, id=node_id))

    async def change(
        self, conn: Connection, node_id: str, *, state: NodeState, labels: Mapping[str, str]
    ) -> NodeRecord | None:
        """What an operator may change; the process reads it back at once."""
        row = await conn.one(_sql.change_node, id=node_id, state=state, labels=Jsonb(dict(labels)))
        await conn.notify(Channel.NODES, node_id)
        return _record(row)

    async def delete(self, conn: Connection, node_id: str) -> bool:
        gone = await conn.run(_sql.remove, id=node_id) > 0
        if gone:
            await conn.notify(Channel.NODES, node_id)
        return gone

    async def counts(self) -> dict[tuple[str, str], int]:
        """How many processes there are, by plane and state (the series ``cluster_nodes``)."""
        return {(row["plane"], row["state"]): row["nodes"] for row in await self.db.fetch(_sql.count_nodes)}


def _record(row: Row | None) -> NodeRecord | None:
    return NodeRecord(**row) if row else None
