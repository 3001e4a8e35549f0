"""Beginning runs of workflows: whether one may begin, whether it is there already, and whether its turn has come."""

from collections.abc import Sequence
from dataclasses import dataclass

from nova.domain.identity import Scope
from nova.errors import NovaError, not_found
from nova.store.db import Connection, Queries, Row

DEFAULT_TIMEOUT_S = 365 * 86_400.0
_sql = Queries("workflow_begin")


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
        _sql.targets,
        tenants=[run.scope.tenant for run in runs],
        namespaces=[run.scope.namespace for run in runs],
        names=[run.workflow for run in runs],
        versions=[run.version for run in runs],
    )


async def _room(conn: Connection, workflows: list[str]) -> dict[str, int]:
    """How many more runs of each may run; nobody else counts before this transaction ends."""
    locked = await conn.fetch(_sql.lock_workflows, ids=workflows)
    running = {row["workflow_id"]: row["running"] for row in await conn.fetch(_sql.count_running, ids=workflows)}
    return {row["id"]: row["max_concurrent_runs"] - running.get(row["id"], 0) for row in locked}


async def _keyed(conn: Connection, runs: Sequence[NewRun], targets: dict[int, Row]) -> dict[int, str]:
    """Runs that there are already, by the place of whoever asks for one of the same key."""
    asked = [(no, run) for no, run in enumerate(runs) if run.key is not None and no in targets]
    rows = await conn.fetch(
        _sql.keyed,
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
        _sql.begin,
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
        timeouts=[float(run.timeout_s or target["default_timeout_s"] or DEFAULT_TIMEOUT_S) for run, target, _ in runs],
    )
    return {row["id"] for row in rows}


async def promote(conn: Connection, workflow_id: str) -> int:
    """Let runs that waited for their turn begin, as many as there is room for; also when the limit was changed."""
    locked = await conn.fetch(_sql.lock_workflows, ids=[workflow_id])
    if not locked:
        return 0
    limit = locked[0]["max_concurrent_runs"]
    running = await conn.one(_sql.count_running, ids=[workflow_id])
    room = limit - (running["running"] if running else 0) if limit else 10_000
    return await conn.run(_sql.promote, workflow=workflow_id, room=room) if room > 0 else 0
