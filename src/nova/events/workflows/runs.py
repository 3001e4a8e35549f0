"""Runs of workflows as everybody but the engine sees them: beginning them, telling them something, doing them again.

Whatever returned is committed; the engine hears of it by a notification, or finds it when it looks by itself.
"""

from collections.abc import Sequence

import structlog

from nova import payload as payloads
from nova.domain.identity import Scope
from nova.domain.workflows.definition import Definition
from nova.errors import NovaError, draining, invalid, not_found
from nova.events.workflows.definitions import Definitions
from nova.ids import new_id
from nova.payload import too_large
from nova.store import workflow_begin, workflow_runs, workflow_signals
from nova.store.db import Connection, Database, Row
from nova.store.workflow_begin import Begun, NewRun
from nova.store.workflow_runs import KIND
from nova.work.grouping import GroupCommit
from nova.work.notices import Notices

log = structlog.get_logger(__name__)
MAX_INPUT = 1 << 20
"""Bytes of a run's input, and of anything it is told."""
MAX_KEY = 128
ACTIVE = ("pending", "running", "paused", "compensating")


class Runs:
    """Implements :class:`~nova.domain.ports.WorkflowStarter`. Runs that are asked for in one moment share a transaction."""

    def __init__(self, db: Database, notices: Notices, definitions: Definitions) -> None:
        self._db = db
        self._notices = notices
        self._definitions = definitions
        self._group: GroupCommit[NewRun, Begun] = GroupCommit(
            "runs", self._write, writers=1, weigh=lambda run: len(run.payload)
        )
        self._closed = False

    async def start(
        self,
        scope: Scope,
        workflow: str,
        payload: bytes,
        *,
        key: str | None = None,
        caller: str,
        traceparent: str | None = None,
        tracestate: str | None = None,
        source: str = "api",
        version: int | None = None,
        timeout_s: float | None = None,
    ) -> str:
        """See :class:`~nova.domain.ports.WorkflowStarter`; the run's id."""
        begun = await self.begin(
            scope,
            workflow,
            payload,
            key=key,
            caller=caller,
            traceparent=traceparent,
            tracestate=tracestate,
            source=source,
            version=version,
            timeout_s=timeout_s,
        )
        return begun.id

    async def begin(
        self,
        scope: Scope,
        workflow: str,
        payload: bytes,
        *,
        key: str | None = None,
        caller: str,
        traceparent: str | None = None,
        tracestate: str | None = None,
        source: str = "api",
        version: int | None = None,
        timeout_s: float | None = None,
    ) -> Begun:
        """Begin a run. ``payload`` is checked JSON; ``caller`` the subject in whose name it runs; ``source`` what began it.
        ``version`` None: the active one. ``timeout_s`` None: the workflow's.

        Raises ``not_found``, ``invalid_state`` (nothing published), ``halted``, ``inflight_limit``, ``payload_too_large``,
        ``validation_failed``, ``draining`` or ``dependency_unavailable``.
        """
        if len(payload) > MAX_INPUT:
            raise too_large(MAX_INPUT)
        if key is not None and not 0 < len(key) <= MAX_KEY:
            raise invalid("run_id", f"1 to {MAX_KEY} characters")
        run = NewRun(
            id=new_id(),
            scope=scope,
            workflow=workflow,
            payload=payload,
            caller=caller,
            source=source,
            version=version,
            key=key,
            timeout_s=timeout_s,
            traceparent=traceparent,
            tracestate=tracestate,
        )
        if self._closed:
            raise draining()
        return await self._group.put(run)

    async def close(self) -> None:
        """Take nothing more; whatever was taken is committed and answered."""
        self._closed = True
        await self._group.close()

    async def _write(self, runs: Sequence[NewRun]) -> Sequence[Begun | BaseException]:
        async with self._db.transaction() as conn:
            answers = await workflow_begin.begin(conn, runs)
        if any(isinstance(answer, Begun) and not answer.replayed and not answer.waits for answer in answers):
            self._notices.work(KIND)
        return answers

    async def cancel(self, scope: Scope, run_id: str, reason: str, compensate: bool, *, by: str) -> str:
        """End a run: calls under way are cancelled, and what was done is undone where ``compensate``. The status it has until
        then. Raises ``not_found`` or ``invalid_state``."""
        told = payloads.encode({"reason": reason, "compensate": compensate})
        return await self._tell(scope, run_id, "cancel", payload=told, by=by)

    async def pause(self, scope: Scope, run_id: str, *, by: str) -> str:
        """Begin nothing new; what runs ends and is kept. The time that a run has goes on. Raises as :meth:`cancel` does."""
        return await self._tell(scope, run_id, "pause", by=by)

    async def resume(self, scope: Scope, run_id: str, *, by: str) -> str:
        return await self._tell(scope, run_id, "resume", by=by)

    async def send(self, scope: Scope, run_id: str, event_key: str, payload: bytes, *, by: str) -> str:
        """An event for the node that waits for ``event_key``, or will. ``payload`` is checked JSON.

        Raises as :meth:`cancel` does, ``payload_too_large``, or ``queue_full`` when many wait to be used.
        """
        if len(payload) > MAX_INPUT:
            raise too_large(MAX_INPUT)
        return await self._tell(scope, run_id, "event", key=event_key, payload=payload, by=by)

    async def decide(
        self, scope: Scope, approval_id: str, approve: bool, *, by: str, comment: str = "", payload: bytes = b"null"
    ) -> None:
        """Answer an approval; the first answer counts. ``by`` is a subject.

        Raises ``not_found``, ``forbidden`` for who is no approver, ``invalid_state`` when it was answered or has ended.
        """
        if len(payload) > MAX_INPUT:
            raise too_large(MAX_INPUT)
        async with self._db.transaction() as conn:
            await workflow_signals.decide(
                conn, scope, approval_id, approved=approve, by=by, comment=comment, payload=payload
            )

    async def _tell(
        self,
        scope: Scope,
        run_id: str,
        kind: workflow_signals.Signal,
        *,
        by: str,
        key: str = "",
        payload: bytes = b"null",
    ) -> str:
        async with self._db.transaction() as conn:
            return await workflow_signals.tell(conn, scope, run_id, kind, key=key, payload=payload, sender=by)

    async def retry(self, scope: Scope, run_id: str, from_: str, *, payload: bytes | None = None, by: str) -> int:
        """Let a run that did not succeed go on. ``from_`` is ``failed`` (what failed, was undone or was never reached),
        ``start``, or a node: that one and all after it. Whatever else had ended keeps its result. ``payload`` replaces the
        run's (``start``) or the node's. The run's generation.

        Raises ``not_found``, ``invalid_state`` unless it has failed, timed out or was cancelled, ``validation_failed``.
        """
        async with self._db.transaction() as conn:
            run = await _found(conn, scope, run_id)
            await conn.one(workflow_runs.sql.lock_run, run=run_id)
            run = await _found(conn, scope, run_id)
            if run["status"] not in ("failed", "timed_out", "cancelled"):
                raise NovaError("invalid_state", f"the run is {run['status']}", extra={"status": run["status"]})
            if run["parent_run_id"] is not None:
                raise NovaError("invalid_state", "the run belongs to another; let that one go on")
            if run["deleted_at"] is not None:
                raise not_found("workflow", run["workflow_name"])
            definition = await self._definitions.get(run["workflow_id"], run["version"])
            again = _again(definition, from_, payload)
            await conn.run(
                workflow_runs.sql.forget_nodes, run=run_id, everything=from_ == "start", paths=_paths(definition, again)
            )
            row = await conn.one(
                workflow_runs.sql.again, run=run_id, input=_text(payload) if from_ == "start" else None
            )
            assert row is not None
            if payload is not None and from_ != "start":
                await _give(conn, scope, run_id, from_, payload, row["generation"])
            await conn.run(workflow_runs.sql.unhear, run=run_id)
            await conn.run(workflow_runs.sql.requeue, run=run_id, tenant=scope.tenant, namespace=scope.namespace)
        self._notices.work(KIND)
        log.info("a run goes on", run=run_id, start=from_, by=by)
        generation: int = row["generation"]
        return generation

    async def fork(
        self,
        scope: Scope,
        run_id: str,
        from_: str,
        *,
        payload: bytes | None = None,
        version: int | None = None,
        caller: str,
    ) -> str:
        """A new run that begins at a node with the results that ``run_id`` has from all nodes that do not come after it.
        ``from_`` and ``payload`` as in :meth:`retry`. The new run's id.

        Raises ``not_found``, ``invalid_state`` (halted, or the run has not ended), ``inflight_limit``, ``validation_failed``.
        """
        async with self._db.transaction() as conn:
            run = await _found(conn, scope, run_id)
            if run["finished_at"] is None:
                raise NovaError("invalid_state", f"the run is {run['status']}; what it will come to is not known")
            definition = await self._definitions.get(run["workflow_id"], version or run["version"])
            again = _again(definition, from_, payload)
            kept = set(range(len(definition.nodes))) - again if from_ != "start" else set()
            new = NewRun(
                id=new_id(),
                scope=scope,
                workflow=run["workflow_name"],
                payload=payload if payload is not None and from_ == "start" else run["input"].encode(),
                caller=caller,
                source=f"run:{run_id}",
                version=version or run["version"],
                timeout_s=run["timeout_s"],
                forked_from=run_id,
            )
            answer = (await workflow_begin.begin(conn, [new]))[0]
            if isinstance(answer, NovaError):
                raise answer
            if kept:
                paths = _paths(definition, kept)
                await conn.run(workflow_runs.sql.copy_nodes, run=new.id, source=run_id, paths=paths)
            if payload is not None and from_ != "start":
                await _give(conn, scope, new.id, from_, payload, 1)
        self._notices.work(KIND)
        return new.id


async def _found(conn: Connection, scope: Scope, run_id: str) -> Row:
    row = await conn.one(workflow_runs.sql.run, run=run_id, tenant=scope.tenant, namespace=scope.namespace)
    if row is None:
        raise not_found("run", run_id)
    return row


def _again(definition: Definition, from_: str, given: bytes | None) -> set[int]:
    """The nodes that are to be done again whatever they came to."""
    if given is not None and len(given) > MAX_INPUT:
        raise too_large(MAX_INPUT)
    if from_ == "start":
        return set(range(len(definition.nodes)))
    if from_ == "failed":
        if given is not None:
            raise invalid("input", "name the node that it is for, or start")
        return set()
    if from_ not in definition.by_path:
        raise invalid("from", f"failed, start, or a node of the workflow; there is no node {from_!r}")
    return set(definition.after(definition.by_path[from_]))


def _paths(definition: Definition, nodes: set[int]) -> list[str]:
    return [definition.nodes[index].path for index in sorted(nodes)]


async def _give(conn: Connection, scope: Scope, run_id: str, path: str, given: bytes, generation: int) -> None:
    await conn.run(
        workflow_runs.sql.give_input,
        run=run_id,
        path=path,
        tenant=scope.tenant,
        namespace=scope.namespace,
        input=_text(given),
        generation=generation,
    )


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode()
