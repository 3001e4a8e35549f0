"""What the process that has a run writes of it.

Every write proves the claim by owner and fence, and is one transaction: what a node came to, the nodes that become ready by
it, the runs that it starts, and what the run's end tells the run above.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from nova import payload
from nova.errors import NovaError
from nova.ids import new_id
from nova.store.db import Connection, Database, Queries
from nova.store.workflow_begin import NewRun, begin, promote
from nova.store.workflow_runs import ClaimedRun

_sql = Queries("workflow_writes")


@dataclass(frozen=True, slots=True)
class NodeRow:
    """What a node, or one item of it, has come to. ``input`` None: as it was written before."""

    path: str
    item: int
    status: str
    attempt: int
    generation: int
    revision: int
    input: bytes | None = None
    output: bytes | None = None
    error: bytes | None = None
    taken: tuple[int, ...] | None = None
    wake_at: datetime | None = None
    child: str | None = None
    completed_no: int | None = None
    compensation: str | None = None
    compensation_error: bytes | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AttemptRow:
    path: str
    item: int
    generation: int
    attempt: int
    purpose: Literal["call", "compensation"]
    request_id: str
    started_at: datetime
    duration_ms: float
    error: bytes | None


@dataclass(frozen=True, slots=True)
class NewApproval:
    id: str
    path: str
    title: str
    form_schema: bytes | None
    approvers: bytes
    input: bytes
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewWait:
    """A node waits for a message of a topic; ``filters`` is JSON."""

    path: str
    topic: str
    filters: bytes


@dataclass(slots=True)
class RunWrite:
    """What one moment of one run is to become. ``then``: the process goes on with it, gives it back until ``wake_s``
    (None: until it is told something), or it has ended."""

    run: ClaimedRun
    owner: str
    status: str | None = None
    ending: bytes | None = None
    output: bytes | None = None
    error: bytes | None = None
    nodes: Sequence[NodeRow] = ()
    attempts: Sequence[AttemptRow] = ()
    consumed: Sequence[str] = ()
    children: Sequence[NewRun] = ()
    approvals: Sequence[NewApproval] = ()
    closed: Sequence[tuple[str, str]] = ()
    waits: Sequence[NewWait] = ()
    then: Literal["go on", "release", "finish"] = "go on"
    wake_s: float | None = None
    seen: int = 0

    @property
    def plain(self) -> bool:
        """It is written by one statement."""
        return self.then == "go on" and not (
            self.status or self.consumed or self.children or self.approvals or self.closed or self.waits
        )


@dataclass(slots=True)
class Written:
    """Which runs were still the owner's. ``begun`` and ``told``: other runs have something to do now."""

    ids: frozenset[str]
    begun: bool = False
    told: bool = False
    refused: dict[str, NovaError] = field(default_factory=dict)
    """runs that could not begin, by their ids; the run that wanted one was not given back"""

    def refuses(self, write: RunWrite) -> bool:
        return any(child.id in self.refused for child in write.children)


async def write(db: Database, writes: Sequence[RunWrite]) -> Written:
    """All of one owner's, in one transaction. Runs that are somebody else's by now are left alone."""
    if all(write.plain for write in writes):
        async with db.connection() as conn:  # one statement is a transaction
            return Written(await _write_nodes(conn, writes))
    async with db.transaction() as conn:
        parents = [w.run.parent.run_id for w in writes if w.then == "finish" and w.run.parent is not None]
        await conn.fetch(_sql.hold, ids=sorted({*(write.run.id for write in writes), *parents}))
        ids = await _write_nodes(conn, writes)
        return await _write_rest(conn, [write for write in writes if write.run.id in ids], ids)


async def _write_rest(conn: Connection, writes: Sequence[RunWrite], ids: frozenset[str]) -> Written:
    written = Written(ids)
    consumed = [event for write in writes for event in write.consumed]
    if consumed:
        await conn.run(_sql.consumed, ids=consumed)
    await _write_approvals(conn, writes)
    await _write_waits(conn, writes)
    children = [child for write in writes for child in write.children]
    if children:
        answers = await begin(conn, children)
        for child, answer in zip(children, answers, strict=True):
            if isinstance(answer, NovaError):
                written.refused[child.id] = answer
        written.begun = True
    await _write_states(conn, [write for write in writes if write.status is not None])
    finished = [write for write in writes if write.then == "finish"]
    if finished:
        await conn.run(_sql.finish, ids=[write.run.id for write in finished])
        written.told = await _tell_parents(conn, finished)
        for workflow in sorted({write.run.workflow_id for write in finished if write.run.limited}):
            written.begun |= await promote(conn, workflow) > 0
    released = [write for write in writes if write.then == "release" and not written.refuses(write)]
    if released:
        await conn.run(
            _sql.release,
            ids=[write.run.id for write in released],
            wakes=[write.wake_s for write in released],
            seen=[write.seen for write in released],
        )
    return written


async def _write_nodes(conn: Connection, writes: Sequence[RunWrite]) -> frozenset[str]:
    """One document for all rows: an array for each column costs more than the statement."""
    rows = await conn.fetch(
        _sql.write_nodes,
        runs=[write.run.id for write in writes],
        fences=[write.run.fence for write in writes],
        owner=writes[0].owner,
        nodes=_document(_node(write.run.id, node) for write in writes for node in write.nodes),
        attempts=_document(_attempt(write.run.id, attempt) for write in writes for attempt in write.attempts),
    )
    return frozenset(row["id"] for row in rows)


def _document(rows: Iterable[dict[str, Any]]) -> str:
    return payload.encode(list(rows)).decode()


def _node(run_id: str, node: NodeRow) -> dict[str, Any]:
    """Users' JSON goes as text, so that it comes out as it is."""
    return {
        "run_id": run_id,
        "node_key": node.path,
        "item": node.item,
        "status": node.status,
        "attempt": node.attempt,
        "generation": node.generation,
        "input": _text(node.input),
        "output": _text(node.output),
        "error": _text(node.error),
        "taken": node.taken,
        "wake_at": node.wake_at,
        "child": node.child,
        "completed_no": node.completed_no,
        "compensation": node.compensation,
        "compensation_error": _text(node.compensation_error),
        "revision": node.revision,
        "started_at": node.started_at,
        "finished_at": node.finished_at,
    }


def _attempt(run_id: str, attempt: AttemptRow) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "node_key": attempt.path,
        "item": attempt.item,
        "generation": attempt.generation,
        "attempt": attempt.attempt,
        "purpose": attempt.purpose,
        "request_id": attempt.request_id,
        "started_at": attempt.started_at,
        "duration_ms": attempt.duration_ms,
        "error": _text(attempt.error),
    }


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


async def _write_states(conn: Connection, writes: Sequence[RunWrite]) -> None:
    if writes:
        await conn.run(
            _sql.write_runs,
            ids=[write.run.id for write in writes],
            statuses=[write.status for write in writes],
            endings=_texts(write.ending for write in writes),
            outputs=_texts(write.output for write in writes),
            errors=_texts(write.error for write in writes),
            finished=[write.then == "finish" for write in writes],
        )


async def _write_approvals(conn: Connection, writes: Sequence[RunWrite]) -> None:
    opened = [(write.run, approval) for write in writes for approval in write.approvals]
    if opened:
        await conn.run(
            _sql.open_approvals,
            ids=[approval.id for _, approval in opened],
            tenants=[run.scope.tenant for run, _ in opened],
            namespaces=[run.scope.namespace for run, _ in opened],
            runs=[run.id for run, _ in opened],
            workflows=[run.workflow for run, _ in opened],
            keys=[approval.path for _, approval in opened],
            titles=[approval.title for _, approval in opened],
            schemas=_texts(approval.form_schema for _, approval in opened),
            approvers=_texts(approval.approvers for _, approval in opened),
            inputs=_texts(approval.input for _, approval in opened),
            expiries=[approval.expires_at for _, approval in opened],
        )
    closed = [(write.run.id, *one) for write in writes for one in write.closed]
    if closed:
        await conn.run(
            _sql.close_approvals,
            runs=[run for run, _, _ in closed],
            keys=[path for _, path, _ in closed],
            statuses=[status for _, _, status in closed],
        )


async def _write_waits(conn: Connection, writes: Sequence[RunWrite]) -> None:
    begun = [(write.run, wait) for write in writes for wait in write.waits]
    if begun:
        await conn.run(
            _sql.begin_waits,
            runs=[run.id for run, _ in begun],
            keys=[wait.path for _, wait in begun],
            tenants=[run.scope.tenant for run, _ in begun],
            namespaces=[run.scope.namespace for run, _ in begun],
            topics=[wait.topic for _, wait in begun],
            filters=[wait.filters.decode() for _, wait in begun],
            since=[run.created_at for run, _ in begun],
        )


async def _tell_parents(conn: Connection, finished: Sequence[RunWrite]) -> bool:
    children = [(write, write.run.parent) for write in finished if write.run.parent is not None]
    if not children:
        return False
    await conn.run(
        _sql.tell_parents,
        ids=[new_id() for _ in children],
        parents=[parent.run_id for _, parent in children],
        children=[write.run.id for write, _ in children],
        payloads=[_ended(write).decode() for write, _ in children],
    )
    return True


def _ended(write: RunWrite) -> bytes:
    """What the run above is told."""
    output, error = write.output or b"null", write.error or b"null"
    return b'{"status":"%b","output":%b,"error":%b}' % ((write.status or "").encode(), output, error)


def _texts(values: Iterable[bytes | None]) -> list[str | None]:
    return [_text(value) for value in values]
