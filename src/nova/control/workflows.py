"""Handlers of workflows. What they do is in their versions (:mod:`nova.control.workflow_versions`)."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Protocol

from nova.api import workflows as api
from nova.api.table import Empty, Page
from nova.control.configure import merge_patch
from nova.control.views import check_match, etag
from nova.domain.identity import Scope
from nova.errors import NovaError, not_found
from nova.http import body as bodies
from nova.http import paging
from nova.http.handler import Answer, Req, handles
from nova.payload import encode
from nova.store import workflow_begin
from nova.store.db import Connection, Database
from nova.store.workflows import WorkflowRecord, WorkflowSettings, WorkflowStore

_FIELDS = tuple(field.name for field in fields(WorkflowSettings))
_SHOWN_RUNS = 20
"""Ids of runs in the way of a deletion that its refusal names."""
_BATCH = 200


class Canceller(Protocol):
    """Ends runs of workflows."""

    async def cancel(self, scope: Scope, run_id: str, reason: str, compensate: bool, *, by: str) -> object: ...


class _DryRun(Exception):
    """Takes back what a dry run wrote."""


class WorkflowHandlers:
    """Create, read, change and delete workflows."""

    def __init__(self, db: Database, workflows: WorkflowStore, runs: Canceller) -> None:
        self._db = db
        self._workflows = workflows
        self._runs = runs

    @handles("workflow.create")
    async def create(self, req: Req[api.WorkflowCreate, api.DryRun]) -> Answer:
        settings = _settings(req.body)
        made: WorkflowRecord | None = None
        try:
            async with self._db.transaction() as conn:
                made = await self._workflows.insert(conn, req.scope, req.body.name, settings, req.identity.subject)
                if req.dry_run:
                    raise _DryRun
        except _DryRun:
            pass
        if made is None:
            raise NovaError("already_exists", f"workflow {req.body.name!r} exists already")
        return workflow_answer(made, 200 if req.dry_run else 201)

    @handles("workflow.list")
    async def list(self, req: Req[None, api.WorkflowQuery]) -> Page[api.Workflow]:
        query = req.query
        found = await self._workflows.page(
            req.scope, q=query.q, after=paging.below(query.cursor), limit=query.limit + 1
        )
        shown = found[: query.limit]
        more = paging.encode([shown[-1].id]) if len(found) > len(shown) else None
        return Page[api.Workflow](items=[workflow_view(record) for record in shown], next_cursor=more)

    @handles("workflow.get")
    async def get(self, req: Req[None, Empty]) -> Answer:
        record = await self._workflows.get(req.scope, req.params["name"])
        if record is None:
            raise not_found("workflow", req.params["name"])
        return workflow_answer(record)

    @handles("workflow.patch")
    async def patch(self, req: Req[api.WorkflowPatch, api.DryRun]) -> Answer:
        patch: Mapping[str, Any] = req.raw_body
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req)
            now = {name: getattr(record.settings, name) for name in _FIELDS}
            now["tags"] = dict(now["tags"])
            target = {name: value for name, value in now.items() if value is not None}
            merged = bodies.parse(api.WorkflowFields, encode(merge_patch(target, patch)))
            settings = _settings(merged)
            if req.dry_run:
                return Answer(workflow_view(record, settings), 200)
            changed = await self._workflows.update(conn, record.id, settings)
            await workflow_begin.promote(conn, record.id)  # a higher limit lets in who waits
        return workflow_answer(changed)

    @handles("workflow.delete")
    async def delete(self, req: Req[None, api.DeleteQuery]) -> None:
        if req.query.cancel_runs:
            await self._cancel_all(req)
        async with self._db.transaction() as conn:
            await self._workflows.hold_schedules(conn, req.scope, req.params["name"])
            record = await self._locked(conn, req)
            active = await self._workflows.active_runs(record.id, limit=_SHOWN_RUNS, conn=conn)
            if active and not req.query.cancel_runs:
                raise NovaError(
                    "in_use",
                    f"runs of workflow {record.name!r} are under way; cancel_runs=true cancels them",
                    extra={"references": [f"/workflows/{record.name}/runs/{run}" for run in active]},
                )
            await self._workflows.delete(conn, record.id)
        if active:
            await self._cancel(req, record.id)

    async def _cancel_all(self, req: Req[None, api.DeleteQuery]) -> None:
        """Before the workflow is gone: whoever asks again after an interruption still finds it."""
        record = await self._workflows.get(req.scope, req.params["name"])
        if record is None:
            raise not_found("workflow", req.params["name"])
        check_match(req.if_match, etag(record.etag, workflow_view(record)))
        await self._cancel(req, record.id)

    async def _cancel(self, req: Req[None, api.DeleteQuery], workflow_id: str) -> None:
        """Every run that is there now, once."""
        after: str | None = None
        while runs := await self._workflows.active_runs(workflow_id, after=after, limit=_BATCH):
            for run_id in runs:
                try:
                    await self._runs.cancel(
                        req.scope, run_id, "its workflow was deleted", True, by=req.identity.subject
                    )
                except NovaError as exc:
                    if exc.code not in ("invalid_state", "not_found"):  # it has ended by itself
                        raise
            after = runs[-1]

    async def _locked(self, conn: Connection, req: Req[Any, Any]) -> WorkflowRecord:
        """The workflow in the path, kept from others, in the state that the caller expects."""
        return await locked(conn, self._workflows, req)


async def locked(conn: Connection, workflows: WorkflowStore, req: Req[Any, Any]) -> WorkflowRecord:
    """The workflow in the path, kept from others. Raises ``not_found``, and ``etag_mismatch`` when If-Match names another
    state of it."""
    record = await workflows.lock(conn, req.scope, req.params["name"])
    if record is None:
        raise not_found("workflow", req.params["name"])
    check_match(req.if_match, etag(record.etag, workflow_view(record)))
    return record


def workflow_view(record: WorkflowRecord, settings: WorkflowSettings | None = None) -> api.Workflow:
    """``settings`` replace the record's own."""
    chosen = settings or record.settings
    return api.Workflow(
        **{name: getattr(chosen, name) for name in _FIELDS if name != "tags"},
        tags=dict(chosen.tags),
        id=record.id,
        name=record.name,
        active_version=record.active_version,
        latest_version=record.next_version - 1 or None,
        etag=record.etag,
        created_by=record.created_by,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def workflow_answer(record: WorkflowRecord, status: int | None = None) -> Answer:
    view = workflow_view(record)
    return Answer(view, status, {"ETag": f'"{etag(record.etag, view)}"'})


def _settings(body: api.WorkflowFields) -> WorkflowSettings:
    return WorkflowSettings(**{name: getattr(body, name) for name in _FIELDS})
