"""Handlers of approvals: questions that runs ask people."""

import json
from typing import Any, get_args
from uuid import UUID

from nova.api import runs as api
from nova.api.table import Empty, Page
from nova.domain.schemas import violations
from nova.errors import FieldError, NovaError, invalid, not_found
from nova.events.workflows.handlers_views import approval_view
from nova.events.workflows.runs import Runs
from nova.http import paging
from nova.http.handler import Req, handles, identifier
from nova.security import access
from nova.store.db import Row
from nova.store.workflow_views import WorkflowViews

_SEE = "payload:read"


class ApprovalHandlers:
    """``approvers`` of a definition bind everybody, operators included."""

    def __init__(self, runs: Runs, views: WorkflowViews) -> None:
        self._runs = runs
        self._views = views

    @handles("approval.list")
    async def list(self, req: Req[None, api.ApprovalQuery]) -> Page[api.Approval]:
        query = req.query
        statuses = [query.status] if query.status else get_args(api.ApprovalStatus)
        rows = await self._views.approvals(
            req.scope, statuses, run=_run(query.run), before=paging.below(query.cursor), limit=query.limit + 1
        )
        shown = rows[: query.limit]
        return Page[api.Approval](
            items=[self._view(req, row) for row in shown],
            next_cursor=paging.encode([shown[-1]["id"]]) if len(rows) > len(shown) else None,
        )

    @handles("approval.get")
    async def get(self, req: Req[None, Empty]) -> api.Approval:
        return self._view(req, await self._row(req))

    @handles("approval.approve")
    async def approve(self, req: Req[api.Decision, Empty]) -> api.Approval:
        return await self._decide(req, True)

    @handles("approval.reject")
    async def reject(self, req: Req[api.Decision, Empty]) -> api.Approval:
        return await self._decide(req, False)

    async def _decide(self, req: Req[api.Decision, Empty], approve: bool) -> api.Approval:
        row = await self._row(req)
        given = req.raw_body.get("payload", None if row["form_schema"] is None else {})
        if approve and row["form_schema"] is not None and row["status"] == "pending":
            _fits(row["form_schema"], given)
        payload = json.dumps(given, ensure_ascii=False, separators=(",", ":")).encode()
        await self._runs.decide(
            req.scope, row["id"], approve, by=req.identity.subject, comment=req.body.comment, payload=payload
        )
        return self._view(req, await self._row(req))

    async def _row(self, req: Req[Any, Any]) -> Row:
        row = await self._views.approval(req.scope, identifier("approval", req.params["id"]))
        if row is None:
            raise not_found("approval", req.params["id"])
        return row

    def _view(self, req: Req[Any, Any], row: Row) -> api.Approval:
        return approval_view(row, payloads=access.allowed(req.identity, _SEE, None) or _asked(req, row))


def _fits(schema: dict[str, Any], payload: Any) -> None:
    """Raise ``validation_failed``, naming every place where the answer is not what the form asks for."""
    errors = [
        FieldError("payload" if not path else f"payload{'' if path[0] == '[' else '.'}{path}", message)
        for path, message in violations(schema, payload)
    ]
    if errors:
        raise NovaError("validation_failed", f"{errors[0].field}: {errors[0].message}", errors=errors)


def _asked(req: Req[Any, Any], row: Row) -> bool:
    """An approver sees what there is to decide about."""
    return req.identity.subject in row["approvers"]


def _run(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(UUID(text))
    except ValueError:
        raise invalid("run", "the id of a run") from None
