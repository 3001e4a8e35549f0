"""Leased, fenced work on one PostgreSQL table.

A row lives from acceptance to completion. Claiming raises its ``fence``; whoever holds an older fence, because its lease
ran out while it was away, can no longer finish, release or prolong the work. Completion deletes the row in the same
transaction that writes the result to the noun's own row.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from nova.domain.identity import Scope
from nova.store.db import Connection, Database, Row
from nova.store.lines import Prepared
from nova.store.work import CHANNEL, enqueue, sql, tell_due, withdraw

__all__ = [
    "CHANNEL",
    "ClaimKey",
    "LeaseLost",
    "WorkItem",
    "WorkQueue",
    "enqueue",
    "finish",
    "hold",
    "newest",
    "release",
    "withdraw",
]

CLAIM = Prepared.of("nova_work_claim", sql.claim)

ClaimKey = tuple[str, int]
"""An item under one fence. A process that lost a lease while it stood still may hold the same item again under the next
fence, before it has noticed: these are two."""


def newest(claims: Iterable[ClaimKey]) -> dict[str, int]:
    """The highest fence of each item: of several claims that write in one statement, only that one may."""
    fences: dict[str, int] = {}
    for item, fence in claims:
        fences[item] = max(fence, fences.get(item, fence))
    return fences


class LeaseLost(Exception):
    """Somebody else owns the work by now, or it was withdrawn. Roll back and forget it."""


class WorkItem(Struct, frozen=True):
    """One claimed piece of work. ``attempt`` counts from 1; ``fence`` and ``owner`` prove the claim.

    ``noun`` is what the kind's own claim has read beside it, if it has one.
    """

    id: str
    kind: str
    scope: Scope
    subject: str
    payload: Mapping[str, Any]
    attempt: int
    fence: int
    owner: str
    noun: Any = None

    @property
    def claim(self) -> ClaimKey:
        return self.id, self.fence

    @classmethod
    def of(cls, row: Row, owner: str) -> "WorkItem":
        return cls(
            id=str(row["id"]),
            kind=row["kind"],
            scope=Scope(row["tenant_id"], row["namespace"]),
            subject=str(row["subject"]),
            payload=row["payload"],
            attempt=row["attempt"],
            fence=row["fence"],
            owner=owner,
        )


async def finish(conn: Connection, item: WorkItem) -> None:
    """The work is done: remove it with whatever else this transaction writes. Raises :class:`LeaseLost`."""
    if not await conn.run(sql.finish, id=item.id, owner=item.owner, fence=item.fence):
        raise LeaseLost(item.id)


async def hold(conn: Connection, item: WorkItem) -> None:
    """Nobody can take the work before this transaction ends. Raises :class:`LeaseLost`."""
    if await conn.one(sql.hold, id=item.id, owner=item.owner, fence=item.fence) is None:
        raise LeaseLost(item.id)


async def release(conn: Connection, item: WorkItem, *, delay_s: float = 0, counts: bool = True) -> None:
    """Give the work back, to be claimed after ``delay_s`` seconds. ``counts`` False: this was no attempt."""
    await conn.run(
        sql.release,
        id=item.id,
        owner=item.owner,
        fence=item.fence,
        delay_s=delay_s,
        forgive=0 if counts else 1,
    )


class WorkQueue:
    """The consumer's side, for one owner (an id that is never used twice)."""

    def __init__(self, db: Database, owner: str, *, lease_s: float = 30) -> None:
        self._db = db
        self.owner = owner
        self.lease_s = lease_s

    async def claim(self, kind: str, batch: int, *, per_tenant: int | None = None) -> list[WorkItem]:
        """Up to ``batch`` due items, oldest first, leased to this owner. At most ``per_tenant`` run for one tenant."""
        claim = {"kind": kind, "owner": self.owner, "batch": batch, "lease_s": self.lease_s}
        if per_tenant is None:
            rows = await self._db.quick(CLAIM, **claim)
        else:
            async with self._db.transaction() as conn:
                await conn.one(sql.claim_turn, kind=kind)
                rows = await conn.fetch(sql.claim_capped, **claim, per_tenant=per_tenant)
        return [WorkItem.of(row, self.owner) for row in rows]

    async def next_due_s(self, kind: str) -> float | None:
        """Seconds until the next item that waits for its time; None: there is none."""
        row = await self._db.one(sql.next_due, kind=kind)
        return None if row is None else max(0.0, row["seconds"])

    async def heartbeat(self, items: Sequence[WorkItem]) -> set[ClaimKey]:
        """Prolong every lease that is still ours; the claims of those."""
        items = sorted(items, key=lambda item: item.id)  # whoever locks several rows does it in one order
        rows = await self._db.fetch(
            sql.heartbeat,
            ids=[item.id for item in items],
            fences=[item.fence for item in items],
            owner=self.owner,
            lease_s=self.lease_s,
        )
        return {(str(row["id"]), row["fence"]) for row in rows}

    async def release(self, item: WorkItem, *, delay_s: float = 0, counts: bool = True) -> None:
        async with self._db.transaction() as conn:
            await release(conn, item, delay_s=delay_s, counts=counts)

    async def release_all(self, items: Sequence[WorkItem]) -> None:
        """Give back work that was leased and not begun, and tell everybody. It was no attempt."""
        async with self._db.transaction() as conn:
            items = sorted(items, key=lambda item: item.id)
            ids, fences = [item.id for item in items], [item.fence for item in items]
            await conn.run(sql.release_all, ids=ids, fences=fences, owner=self.owner)
            for kind in sorted({item.kind for item in items}):
                await tell_due(conn, kind)
