"""Handlers of runs: beginning, looking at and steering them."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, get_args

from nova.api import runs as api
from nova.api.table import Empty, Page
from nova.clock import SYSTEM_CLOCK, Clock
from nova.errors import invalid, not_found
from nova.events.workflows.handlers_changes import RunChanges, wait
from nova.events.workflows.handlers_feed import Feed
from nova.events.workflows.handlers_views import (
    ENDED,
    map_at,
    node_view,
    run_detail,
    run_view,
)
from nova.events.workflows.runs import MAX_INPUT, Runs
from nova.http import paging
from nova.http.handler import Answer, Req, handles, identifier
from nova.http.sse import Batch, Event
from nova.payload import too_large
from nova.security import access
from nova.store.db import Row
from nova.store.workflow_views import RunFilter, WorkflowViews
from nova.store.workflows import WorkflowStore

_LOOK_S = 1.0
"""Whoever waits for a run looks at its row this often, should a notification be lost."""
_CHANGES = 500
"""Changes of a run that its feed reads at a time."""
_SEE = "payload:read"


class RunHandlers:
    """Serves ``nova.api.runs`` but for approvals."""

    def __init__(
        self,
        runs: Runs,
        views: WorkflowViews,
        workflows: WorkflowStore,
        changes: RunChanges,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._runs = runs
        self._views = views
        self._workflows = workflows
        self._changes = changes
        self._clock = clock

    # Beginning

    @handles("run.create")
    async def create(self, req: Req[api.RunCreate, api.StartQuery]) -> Answer:
        body, name = req.body, req.params["name"]
        begun = await self._runs.begin(
            req.scope,
            name,
            _payload(req.raw_body.get("input", {})),
            key=body.run_id,
            version=body.version,
            timeout_s=body.timeout_s,
            caller=req.identity.subject,
            source="api",
            traceparent=req.http.headers.get("traceparent"),
            tracestate=req.http.headers.get("tracestate"),
        )
        row = await self._ended(req, begun.id, req.query.wait_s)
        return await self._created(req, row, status=200 if begun.replayed else 201)

    @handles("run.fork")
    async def fork(self, req: Req[api.Fork, Empty]) -> Answer:
        row, body = await self._row(req), req.body
        given = {"payload": _payload(req.raw_body["input"])} if "input" in req.raw_body else {}
        run_id = await self._runs.fork(
            req.scope, row["id"], body.from_, version=body.version, caller=req.identity.subject, **given
        )
        return await self._created(req, await self._found(req, run_id))

    async def _created(self, req: Req[Any, Any], row: Row, *, status: int = 201) -> Answer:
        location = f"/workflows/{row['workflow_name']}/runs/{row['id']}"
        return Answer(await self._detail(req, row), status, {"Location": location})

    # Looking

    @handles("run.list")
    async def list(self, req: Req[None, api.RunQuery]) -> Page[api.Run]:
        name, query = req.params["name"], req.query
        workflow = await self._workflows.get(req.scope, name)
        if workflow is None:
            raise not_found("workflow", name)
        wanted = RunFilter(_statuses(query.status, api.RunStatus), query.since, query.version)
        rows = await self._views.runs_of_workflow(
            workflow.id, wanted, before=paging.below(query.cursor), limit=query.limit + 1
        )
        return _page(rows, query.limit)

    @handles("run.all")
    async def all(self, req: Req[None, api.ScopeRunQuery]) -> Page[api.Run]:
        query = req.query
        wanted = RunFilter(_statuses(query.status, api.RunStatus), query.since, workflow=query.workflow)
        rows = await self._views.runs(req.scope, wanted, before=paging.below(query.cursor), limit=query.limit + 1)
        return _page(rows, query.limit)

    @handles("run.find")
    async def find(self, req: Req[None, Empty]) -> api.RunDetail:
        return await self._detail(req, await self._row(req))

    @handles("run.get")
    async def get(self, req: Req[None, api.StartQuery]) -> api.RunDetail:
        row = await self._row(req)
        return await self._detail(req, await self._ended(req, row["id"], req.query.wait_s))

    @handles("run.items")
    async def items(self, req: Req[None, api.ItemQuery]) -> Page[api.Node]:
        row, query = await self._row(req), req.query
        path = req.params["node"]
        does = map_at(await self._views.definition(row), path)
        if does is None:
            raise not_found("map", path)
        values = paging.decode(query.cursor, int)
        rows = await self._views.items(
            row["id"],
            path,
            statuses=_statuses(query.status, api.NodeStatus),
            after=int(values[0]) if values else -1,
            limit=query.limit + 1,
        )
        shown = rows[: query.limit]
        first, last = (shown[0]["item"], shown[-1]["item"]) if shown else (0, -1)
        attempts: dict[int, list[Row]] = {}
        for found in await self._views.attempts(row["id"], path, first, last):
            attempts.setdefault(found["item"], []).append(found)
        children = await self._views.children(row["id"], path, first, last)
        payloads = _sees(req)
        return Page[api.Node](
            items=[
                node_view(
                    one,
                    does,
                    attempts.get(one["item"], ()),
                    payloads=payloads,
                    child_run_id=children.get(one["item"]),
                )
                for one in shown
            ],
            next_cursor=paging.encode([shown[-1]["item"]]) if len(rows) > len(shown) else None,
        )

    @handles("run.events")
    async def events(self, req: Req[None, Empty]) -> AsyncIterator[Event | Batch]:
        """Ends with the run. The id of an event is a revision of the run, so a client can go on after a break."""
        feed = Feed(_revision(req.http.headers.get("last-event-id")))
        run_id = (await self._row(req))["id"]
        with self._changes.of(run_id) as changed:
            while True:
                row = await self._found(req, run_id)
                rows = await self._views.changes(run_id, feed.revision, limit=_CHANGES)
                if (batch := feed.batch(row, rows, self._clock.now())) is not None:
                    yield batch
                if len(rows) >= _CHANGES:
                    continue
                if row["status"] in ENDED:
                    break
                await wait(changed, _LOOK_S)
        yield feed.end(row)

    # Steering

    @handles("run.cancel")
    async def cancel(self, req: Req[api.Cancel, Empty]) -> api.Run:
        row = await self._row(req)
        await self._runs.cancel(req.scope, row["id"], req.body.reason, req.body.compensate, by=req.identity.subject)
        return run_view(await self._found(req, row["id"]))

    @handles("run.pause")
    async def pause(self, req: Req[None, Empty]) -> api.Run:
        row = await self._row(req)
        await self._runs.pause(req.scope, row["id"], by=req.identity.subject)
        return run_view(await self._found(req, row["id"]))

    @handles("run.resume")
    async def resume(self, req: Req[None, Empty]) -> api.Run:
        row = await self._row(req)
        await self._runs.resume(req.scope, row["id"], by=req.identity.subject)
        return run_view(await self._found(req, row["id"]))

    @handles("run.retry")
    async def retry(self, req: Req[api.Retry, Empty]) -> api.Run:
        row = await self._row(req)
        given = {"payload": _payload(req.raw_body["input"])} if "input" in req.raw_body else {}
        await self._runs.retry(req.scope, row["id"], req.body.from_, by=req.identity.subject, **given)
        return run_view(await self._found(req, row["id"]))

    @handles("run.send")
    async def send(self, req: Req[api.SendEvent, Empty]) -> api.EventAccepted:
        row, key = await self._row(req), req.params["key"]
        if not 1 <= len(key) <= 256:
            raise invalid("key", "1 to 256 characters")
        payload = _payload(req.raw_body.get("payload", {}))
        await self._runs.send(req.scope, row["id"], key, payload, by=req.identity.subject)
        return api.EventAccepted(run=row["id"], key=key)

    async def _ended(self, req: Req[Any, Any], run_id: str, wait_s: float) -> Row:
        """The run when it has ended, or after so many seconds."""
        until = self._clock.monotonic() + wait_s
        row = await self._found(req, run_id)
        if wait_s and row["status"] not in ENDED:
            with self._changes.of(run_id) as changed:
                while (row := await self._found(req, run_id))["status"] not in ENDED:
                    if (left := until - self._clock.monotonic()) <= 0:
                        break
                    await wait(changed, min(left, _LOOK_S))
        return row

    async def _detail(self, req: Req[Any, Any], row: Row) -> api.RunDetail:
        return run_detail(row, await self._views.inside(row), payloads=_sees(req))

    async def _row(self, req: Req[Any, Any]) -> Row:
        """The run in the path, of the workflow in the path."""
        row = await self._found(req, req.params["id"])
        if req.params.get("name", row["workflow_name"]) != row["workflow_name"]:
            raise not_found("run", req.params["id"])
        return row

    async def _found(self, req: Req[Any, Any], run_id: str) -> Row:
        row = await self._views.run(req.scope, identifier("run", run_id))
        if row is None:
            raise not_found("run", run_id)
        return row


def _page(rows: Sequence[Row], limit: int) -> Page[api.Run]:
    more = paging.encode([rows[limit - 1]["id"]]) if len(rows) > limit else None
    return Page[api.Run](items=[run_view(row) for row in rows[:limit]], next_cursor=more)


def _statuses(text: str | None, kind: Any) -> Sequence[str] | None:
    if text is None:
        return None
    statuses = text.split(",")
    if unknown := [one for one in statuses if one not in get_args(kind)]:
        raise invalid("status", f"{unknown[0]!r} is none of {', '.join(get_args(kind))}")
    return statuses


def _payload(value: Any) -> bytes:
    """A value of a body as the bytes that are kept. Raises ``payload_too_large``."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    if len(data) > MAX_INPUT:
        raise too_large(MAX_INPUT)
    return data


def _sees(req: Req[Any, Any]) -> bool:
    return access.allowed(req.identity, _SEE, None)


def _revision(last: str | None) -> int:
    if last is None:
        return 0
    if not (last.isascii() and last.isdigit() and len(last) < 10):
        raise invalid("Last-Event-ID", "the id of an event of this feed")
    return int(last)
