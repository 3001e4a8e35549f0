"""What runs of workflows are told from outside: events, answers to approvals, cancel, pause, resume.

Whoever tells a run something locks its row of work first and makes it due. So what one run is told is in an order, and a
process that gives the run back at that moment cannot miss it.
"""

import json
from dataclasses import dataclass
from typing import Literal

from nova.domain.identity import Scope
from nova.errors import NovaError, not_found
from nova.ids import new_id
from nova.store.db import Connection, Database, Queries, Row
from nova.store.listen import Channel
from nova.store.workflow_runs import KIND

MAX_UNREAD = 1000
"""Things a run was told that it has not used yet; more are refused."""

Signal = Literal["event", "cancel", "pause", "resume", "approval", "message"]
sql = Queries("workflow_signals")


@dataclass(frozen=True, slots=True)
class Told:
    """One thing a run was told. ``no`` grows in the order of commits."""

    id: str
    no: int
    kind: str
    key: str
    payload: bytes
    sender: str


async def tell(
    conn: Connection, scope: Scope, run_id: str, kind: Signal, *, key: str = "", payload: bytes = b"null", sender: str
) -> str:
    """Tell a run something, inside of a transaction; the status that it has.

    Raises ``not_found``, ``invalid_state`` when it has ended, ``queue_full`` above :data:`MAX_UNREAD`.
    """
    woken = await conn.one(sql.wake, run=run_id, tenant=scope.tenant, namespace=scope.namespace)
    row = await conn.one(sql.status, run=run_id, tenant=scope.tenant, namespace=scope.namespace)
    if row is None:
        raise not_found("run", run_id)
    status: str = row["status"]
    if woken is None or row["finished_at"] is not None:
        raise NovaError("invalid_state", f"the run has ended: it is {status}", extra={"status": status})
    unread = await conn.one(sql.unread, run=run_id, limit=MAX_UNREAD)
    if kind == "event" and unread is not None and unread["unread"] >= MAX_UNREAD:
        raise NovaError("queue_full", f"{MAX_UNREAD} events wait to be used by the run", retry_after_s=5)
    await conn.run(
        sql.tell,
        id=new_id(),
        tenant=scope.tenant,
        namespace=scope.namespace,
        run=run_id,
        kind=kind,
        key=key,
        payload=payload.decode(),
        sender=sender,
    )
    await conn.notify(Channel.RUNS, json.dumps({"run": run_id, "told": kind}))
    await conn.notify(Channel.WORK, json.dumps({"kind": KIND}))
    return status


async def decide(
    conn: Connection, scope: Scope, approval_id: str, *, approved: bool, by: str, comment: str, payload: bytes
) -> Row:
    """The first answer counts; the approval's ``run_id`` and ``node_key``.

    Raises ``not_found``, ``invalid_state`` when it was answered, ``forbidden`` for who is no approver.
    """
    row = await conn.one(sql.approval, id=approval_id, tenant=scope.tenant, namespace=scope.namespace)
    if row is None:
        raise not_found("approval", approval_id)
    if row["approvers"] and by not in row["approvers"]:
        raise NovaError("forbidden", "the approval names others to decide")
    # the run's row of work before anything else, as whoever ends the run does it
    await conn.one(sql.wake, run=row["run_id"], tenant=scope.tenant, namespace=scope.namespace)
    status = "approved" if approved else "rejected"
    if not await conn.run(sql.decide, id=approval_id, status=status, by=by, comment=comment, payload=payload.decode()):
        now = await conn.one(sql.approval, id=approval_id, tenant=scope.tenant, namespace=scope.namespace)
        raise NovaError("invalid_state", f"the approval is {now['status'] if now else 'gone'}")
    answer = b'{"approved":%b,"by":%b,"comment":%b,"payload":%b}' % (
        b"true" if approved else b"false",
        json.dumps(by).encode(),
        json.dumps(comment).encode(),
        payload,
    )
    await tell(conn, scope, row["run_id"], "approval", key=row["node_key"], payload=answer, sender=by)
    return row


class SignalStore:
    """For the process that has the run."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def read(self, run_id: str, *, seen: int, limit: int = MAX_UNREAD) -> list[Told]:
        """What the run was told since ``seen`` and has not used, in order."""
        rows = await self._db.fetch(sql.read, run=run_id, seen=seen, limit=limit)
        return [
            Told(row["id"], row["no"], row["kind"], row["key"], row["payload"].encode(), row["sender"]) for row in rows
        ]
