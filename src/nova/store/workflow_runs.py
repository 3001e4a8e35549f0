"""Runs of workflows: beginning them, claiming them, and what the process that has claimed one writes.

Every write of a claimed run proves the claim by owner and fence, and is one transaction: what a node came to, the nodes that
become ready by it, the runs that it starts, and what the run's end tells the run above.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from nova import payload
from nova.domain.identity import Scope
from nova.errors import NovaError, not_found
from nova.ids import new_id
from nova.store.db import Connection, Database, Queries, Row

KIND = "run"
"""Of work that advances one run. The id of the row, and its subject, are the run's."""
DEFAULT_TIMEOUT_S = 365 * 86_400.0

sql = Queries("workflow_runs")


@dataclass(frozen=True, slots=True)
class Parent:
    """The node of another run that waits for this one."""

    run_id: str
    node_key: str
    item: int


@dataclass(frozen=True, slots=True)
class NewRun:
    """``payload`` is JSON. ``key``: the workflow has at most one run of that name. ``queue``: wait for a turn whatever the
    workflow says of runs above its limit."""

    id: str
    scope: Scope
    workflow: str
    payload: bytes
    caller: str
    source: str
    version: int | None = None
    key: str | None = None
    timeout_s: float | None = None
    depth: int = 0
    parent: Parent | None = None
    forked_from: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    queue: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """``replayed``: an earlier run with the same key stands for it. ``waits``: too many others run."""

    id: str
    replayed: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run as it is when its process takes it. ``begun``: nodes have rows. ``told``: there may be something to read."""

    id: str
    scope: Scope
    workflow_id: str
    workflow: str
    version: int
    key: str | None
    status: str
    input: bytes
    ending: Any
    generation: int
    depth: int
    parent: Parent | None
    caller: str
    source: str
    traceparent: str | None
    tracestate: str | None
    deadline_at: datetime
    created_at: datetime
    on_failure: str
    limited: bool
    begun: bool
    told: bool
    attempt: int
    fence: int


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
    then: Literal["go on", "release", "finish"] = "go on"
    wake_s: float | None = None
    seen: int = 0

    @property
    def plain(self) -> bool:
        """It is written by one statement."""
        return self.then == "go on" and not (
            self.status or self.consumed or self.children or self.approvals or self.closed
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


async def begin(conn: Connection, runs: Sequence[NewRun]) -> list[Begun | NovaError]:
    """Begin runs, each with its row of work; one answer for each in order. Inside of a transaction.

    The refusals: ``not_found``, ``invalid_state`` (nothing published), ``halted``, ``inflight_limit``.
    """
    targets = {row["no"] - 1: row for row in await _targets(conn, runs)}
    limited = sorted({row["workflow_id"] for row in targets.values() if row["max_concurrent_runs"]})
    room = await _room(conn, limited) if limited else {}
    keyed = await _keyed(conn, runs, targets) if limited else {}
    answers: list[Begun | NovaError] = []
    making: list[tuple[int, str]] = []
    for no, run in enumerate(runs):
        target = targets.get(no)
        refusal = _refusal(run, target)
        if refusal is not None or target is None:
            answers.append(refusal or not_found("workflow", run.workflow))
        elif no in keyed:
            answers.append(Begun(keyed[no], replayed=True))
        else:
            answer = _place(run, target, room)
            answers.append(answer)
            if isinstance(answer, Begun):
                making.append((no, "pending" if answer.waits else "running"))
    made = await _insert(conn, [(runs[no], targets[no], status) for no, status in making])
    for no, run_id in (await _keyed(conn, runs, targets)).items() if len(made) < len(making) else ():
        if runs[no].id not in made and isinstance(answers[no], Begun):
            answers[no] = Begun(run_id, replayed=True)
    return answers


async def _targets(conn: Connection, runs: Sequence[NewRun]) -> list[Row]:
    return await conn.fetch(
        sql.targets,
        tenants=[run.scope.tenant for run in runs],
        namespaces=[run.scope.namespace for run in runs],
        names=[run.workflow for run in runs],
        versions=[run.version for run in runs],
    )


async def _room(conn: Connection, workflows: list[str]) -> dict[str, int]:
    """How many more runs of each may run; nobody else counts before this transaction ends."""
    locked = await conn.fetch(sql.lock_workflows, ids=workflows)
    running = {row["workflow_id"]: row["running"] for row in await conn.fetch(sql.count_running, ids=workflows)}
    return {row["id"]: row["max_concurrent_runs"] - running.get(row["id"], 0) for row in locked}


async def _keyed(conn: Connection, runs: Sequence[NewRun], targets: dict[int, Row]) -> dict[int, str]:
    """Runs that there are already, by the place of whoever asks for one of the same key."""
    asked = [(no, run) for no, run in enumerate(runs) if run.key is not None and no in targets]
    rows = await conn.fetch(
        sql.keyed,
        tenants=[run.scope.tenant for _, run in asked],
        namespaces=[run.scope.namespace for _, run in asked],
        workflows=[targets[no]["workflow_id"] for no, _ in asked],
        keys=[run.key for _, run in asked],
    )
    return {asked[row["no"] - 1][0]: row["id"] for row in rows}


def _refusal(run: NewRun, target: Row | None) -> NovaError | None:
    if target is None:
        return not_found("workflow", run.workflow)
    if target["halted"]:
        return NovaError("halted", f"workflow {run.workflow!r} is halted: it begins no runs")
    if target["version"] is None and run.version is not None:
        return not_found("version", f"{run.workflow}:{run.version}")
    if target["version"] is None:
        return NovaError("invalid_state", f"no version of workflow {run.workflow!r} is active")
    return None


def _place(run: NewRun, target: Row, room: dict[str, int]) -> Begun | NovaError:
    if not target["max_concurrent_runs"]:
        return Begun(run.id)
    left = room[target["workflow_id"]]
    if left > 0:
        room[target["workflow_id"]] = left - 1
        return Begun(run.id)
    if target["on_limit"] == "reject" and not run.queue:
        return NovaError(
            "inflight_limit",
            f"{target['max_concurrent_runs']} runs of workflow {run.workflow!r} are under way",
            retry_after_s=1,
            status=429,
        )
    return Begun(run.id, waits=True)


async def _insert(conn: Connection, runs: Sequence[tuple[NewRun, Row, str]]) -> set[str]:
    """The ids of those that are new."""
    if not runs:
        return set()
    parents = [run.parent for run, _, _ in runs]
    rows = await conn.fetch(
        sql.begin,
        ids=[run.id for run, _, _ in runs],
        tenants=[run.scope.tenant for run, _, _ in runs],
        namespaces=[run.scope.namespace for run, _, _ in runs],
        workflows=[target["workflow_id"] for _, target, _ in runs],
        names=[run.workflow for run, _, _ in runs],
        versions=[target["version"] for _, target, _ in runs],
        keys=[run.key for run, _, _ in runs],
        statuses=[status for _, _, status in runs],
        inputs=[run.payload.decode() for run, _, _ in runs],
        depths=[run.depth for run, _, _ in runs],
        parents=[parent and parent.run_id for parent in parents],
        parent_nodes=[parent and parent.node_key for parent in parents],
        parent_items=[parent and parent.item for parent in parents],
        forks=[run.forked_from for run, _, _ in runs],
        callers=[run.caller for run, _, _ in runs],
        sources=[run.source for run, _, _ in runs],
        traceparents=[run.traceparent for run, _, _ in runs],
        tracestates=[run.tracestate for run, _, _ in runs],
        timeouts=[run.timeout_s or target["default_timeout_s"] or DEFAULT_TIMEOUT_S for run, target, _ in runs],
    )
    return {row["id"] for row in rows}


async def promote(conn: Connection, workflow_id: str) -> int:
    """Let runs that waited for their turn begin, as many as there is room for; also when the limit was changed."""
    locked = await conn.fetch(sql.lock_workflows, ids=[workflow_id])
    if not locked:
        return 0
    limit = locked[0]["max_concurrent_runs"]
    running = await conn.one(sql.count_running, ids=[workflow_id])
    room = limit - (running["running"] if running else 0) if limit else 10_000
    return await conn.run(sql.promote, workflow=workflow_id, room=room) if room > 0 else 0


class RunStore:
    """For the processes that work runs off."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def claim(self, owner: str, batch: int, lease_s: float) -> tuple[list[ClaimedRun], bool]:
        """Up to ``batch`` runs that are due, leased to ``owner``. And: may there be more?"""
        rows = await self._db.fetch(sql.claim, owner=owner, batch=batch, lease_s=lease_s)
        if not rows:
            return [], False
        share = max(1, batch // rows[0]["lanes"])
        taken = Counter(row["tenant_id"] for row in rows)
        return [_claimed(row) for row in rows], rows[0]["lanes"] > batch or max(taken.values()) >= share

    async def definition(self, workflow_id: str, version: int) -> str | None:
        row = await self._db.one(sql.definition, workflow=workflow_id, version=version)
        return None if row is None else row["definition"]

    async def delete_finished(self, before: datetime, limit: int) -> int:
        """Runs that ended before then, with all they have; and deleted workflows that have none left."""
        gone = await self._db.run(sql.delete_finished, before=before, limit=limit)
        if gone < limit:
            await self._db.run(sql.delete_workflows, limit=limit)
        return gone

    async def children(self, run_id: str) -> frozenset[str]:
        """The runs that this one has started."""
        return frozenset(row["id"] for row in await self._db.fetch(sql.children, run=run_id))

    async def nodes(self, run_id: str) -> list[Row]:
        """What the run's nodes have come to so far."""
        return await self._db.fetch(sql.nodes, run=run_id)

    async def write(self, writes: Sequence[RunWrite]) -> Written:
        """All of one owner's, in one transaction. Runs that are somebody else's by now are left alone."""
        if all(write.plain for write in writes):
            async with self._db.connection() as conn:  # one statement is a transaction
                return Written(await _write_nodes(conn, writes))
        async with self._db.transaction() as conn:
            parents = [w.run.parent.run_id for w in writes if w.then == "finish" and w.run.parent is not None]
            await conn.fetch(sql.hold, ids=sorted({*(write.run.id for write in writes), *parents}))
            ids = await _write_nodes(conn, writes)
            return await _write_rest(conn, [write for write in writes if write.run.id in ids], ids)


async def _write_rest(conn: Connection, writes: Sequence[RunWrite], ids: frozenset[str]) -> Written:
    written = Written(ids)
    consumed = [event for write in writes for event in write.consumed]
    if consumed:
        await conn.run(sql.consumed, ids=consumed)
    await _write_approvals(conn, writes)
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
        await conn.run(sql.finish, ids=[write.run.id for write in finished])
        written.told = await _tell_parents(conn, finished)
        for workflow in sorted({write.run.workflow_id for write in finished if write.run.limited}):
            written.begun |= await promote(conn, workflow) > 0
    released = [write for write in writes if write.then == "release" and not written.refuses(write)]
    if released:
        await conn.run(
            sql.release,
            ids=[write.run.id for write in released],
            wakes=[write.wake_s for write in released],
            seen=[write.seen for write in released],
        )
    return written


async def _write_nodes(conn: Connection, writes: Sequence[RunWrite]) -> frozenset[str]:
    """One document for all rows: an array for each column costs more than the statement."""
    rows = await conn.fetch(
        sql.write_nodes,
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
            sql.write_runs,
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
            sql.open_approvals,
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
            sql.close_approvals,
            runs=[run for run, _, _ in closed],
            keys=[path for _, path, _ in closed],
            statuses=[status for _, _, status in closed],
        )


async def _tell_parents(conn: Connection, finished: Sequence[RunWrite]) -> bool:
    children = [(write, write.run.parent) for write in finished if write.run.parent is not None]
    if not children:
        return False
    await conn.run(
        sql.tell_parents,
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


def _claimed(row: Row) -> ClaimedRun:
    parent = row["parent_run_id"]
    return ClaimedRun(
        id=row["id"],
        scope=Scope(row["tenant_id"], row["namespace"]),
        workflow_id=row["workflow_id"],
        workflow=row["workflow_name"],
        version=row["version"],
        key=row["key"],
        status=row["status"],
        input=row["input"].encode(),
        ending=row["ending"],
        generation=row["generation"],
        depth=row["depth"],
        parent=None if parent is None else Parent(parent, row["parent_node"], row["parent_item"]),
        caller=row["caller"],
        source=row["source"],
        traceparent=row["traceparent"],
        tracestate=row["tracestate"],
        deadline_at=row["deadline_at"],
        created_at=row["created_at"],
        on_failure=row["on_failure"],
        limited=row["limited"],
        begun=row["begun"],
        told=row["told"],
        attempt=row["attempt"],
        fence=row["fence"],
    )
