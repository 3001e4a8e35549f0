"""Handlers of workflows' versions: definitions are checked whole, published once and never changed."""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from nova.api import workflows as api
from nova.api.table import Empty, Page, PageQuery
from nova.config import LimitSettings
from nova.control.workflows import locked, workflow_answer
from nova.domain.identity import Identity, Scope
from nova.domain.workflows.definition import parse
from nova.errors import FieldError, NovaError, invalid, not_found
from nova.http import paging
from nova.http.handler import Answer, Req, handles
from nova.security import access
from nova.store.db import Connection, Database
from nova.store.workflows import Referred, VersionRecord, VersionSummary, WorkflowRecord, WorkflowStore

_NEEDED: dict[Referred, str] = {"function": "function:invoke", "workflow": "workflow:invoke", "topic": "event:read"}


class WorkflowVersionHandlers:
    """Whoever publishes a definition must be allowed to call what is in it: runs call it for others later."""

    def __init__(self, db: Database, workflows: WorkflowStore, limits: LimitSettings) -> None:
        self._db = db
        self._workflows = workflows
        self._limits = limits

    @handles("workflow.validate")
    async def validate(self, req: Req[api.Definition, Empty]) -> api.Validation:
        definition = req.raw_body
        nodes = await self._check(req.scope, definition)
        called = list(references(definition))
        return api.Validation(
            valid=True,
            nodes=nodes,
            functions=sorted({found.name for found in called if found.kind == "function"}),
            workflows=sorted({found.name for found in called if found.kind == "workflow"}),
            topics=sorted({found.name for found in called if found.kind == "topic"}),
        )

    @handles("workflow.version.create")
    async def create(self, req: Req[api.Definition, api.PublishQuery]) -> Answer:
        definition = req.raw_body
        _require_calls(req.identity, definition)
        async with self._db.transaction() as conn:
            workflow = await locked(conn, self._workflows, req)
            await self._check(req.scope, definition, conn)
            if req.dry_run:
                record = _would_be(workflow, definition, req.identity.subject)
                return Answer(_detail(workflow, record), 200)
            next_version = workflow.next_version
            version = await self._workflows.publish(conn, workflow, definition, req.identity.subject)
            if req.query.activate and workflow.active_version != version:
                workflow = await self._workflows.activate(conn, workflow.id, version)
            made = await self._version(workflow, version, conn)
        return Answer(_detail(workflow, made), 201 if version == next_version else 200)

    @handles("workflow.version.list")
    async def list(self, req: Req[None, PageQuery]) -> Page[api.WorkflowVersion]:
        workflow = await self._workflow(req)
        values = paging.decode(req.query.cursor, int)
        before = int(values[0]) if values else None
        found = await self._workflows.versions(workflow.id, before=before, limit=req.query.limit + 1)
        shown = found[: req.query.limit]
        more = paging.encode([shown[-1].version]) if len(found) > len(shown) else None
        items = [api.WorkflowVersion(**_members(workflow, version)) for version in shown]
        return Page[api.WorkflowVersion](items=items, next_cursor=more)

    @handles("workflow.version.get")
    async def get(self, req: Req[None, Empty]) -> api.WorkflowVersionDetail:
        workflow = await self._workflow(req)
        return _detail(workflow, await self._version(workflow, _number(req, "version")))

    @handles("workflow.version.activate")
    async def activate(self, req: Req[None, Empty]) -> Answer:
        async with self._db.transaction() as conn:
            workflow = await locked(conn, self._workflows, req)
            version = await self._version(workflow, _number(req, "version"), conn)
            _require_calls(req.identity, version.definition)
            if workflow.active_version != version.version:
                workflow = await self._workflows.activate(conn, workflow.id, version.version)
        return workflow_answer(workflow)

    @handles("workflow.version.diff")
    async def diff(self, req: Req[None, Empty]) -> api.VersionDiff:
        workflow = await self._workflow(req)
        a, b = _number(req, "a"), _number(req, "b")
        before = (await self._version(workflow, a)).definition
        after = (await self._version(workflow, b)).definition
        edges_before, edges_after = before.get("edges") or [], after.get("edges") or []
        return api.VersionDiff(
            a=a,
            b=b,
            nodes=list(_changes(before, after)),
            edges_added=[edge for edge in edges_after if edge not in edges_before],
            edges_removed=[edge for edge in edges_before if edge not in edges_after],
            output_changed=before.get("output") != after.get("output"),
        )

    async def _check(self, scope: Scope, definition: Any, conn: Connection | None = None) -> int:
        """How many nodes it has. Raises one ``validation_failed`` with everything that is wrong."""
        errors: list[FieldError] = []
        nodes = 0
        try:  # a large one takes half a second, in which others have to be answered
            nodes = len((await asyncio.to_thread(parse, definition, max_nodes=self._limits.workflow_nodes)).nodes)
        except NovaError as exc:
            errors += exc.errors
        called = list(references(definition))
        names: dict[Referred, set[str]] = {}
        for found in called:
            names.setdefault(found.kind, set()).add(found.name)
        missing = await self._workflows.missing(scope, names, conn)
        for found in called:
            if found.name in missing[found.kind]:
                errors.append(FieldError(found.field, f"{found.kind} {found.name!r} does not exist"))
        if errors:
            first = errors[0]
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            raise NovaError("validation_failed", f"{first.field}: {first.message}{more}", errors=errors)
        return nodes

    async def _workflow(self, req: Req[None, Any]) -> WorkflowRecord:
        record = await self._workflows.get(req.scope, req.params["name"])
        if record is None:
            raise not_found("workflow", req.params["name"])
        return record

    async def _version(self, workflow: WorkflowRecord, version: int, conn: Connection | None = None) -> VersionRecord:
        record = await self._workflows.version(workflow.id, version, conn)
        if record is None:
            raise NovaError("not_found", f"workflow {workflow.name!r} has no version {version}")
        return record


_MEMBERS: tuple[tuple[Referred, str], ...] = (
    ("function", "function_name"),
    ("workflow", "workflow_name"),
    ("topic", "topic"),
)


class Reference(NamedTuple):
    """What a definition calls, or waits for, by its name, and where it says so."""

    kind: Referred
    name: str
    field: str


def references(definition: Any, at: str = "") -> Iterator[Reference]:
    """Every function, workflow and topic that a definition names, as far as it is one: it need not be valid."""
    nodes = definition.get("nodes") if isinstance(definition, Mapping) else None
    waiting = deque((node, f"{at}nodes[{no}]") for no, node in enumerate(nodes if isinstance(nodes, list) else ()))
    while waiting:
        node, field = waiting.popleft()
        if not isinstance(node, Mapping):
            continue
        for kind, member in _MEMBERS:
            if isinstance(name := node.get(member), str):
                yield Reference(kind, name, f"{field}.{member}")
        for inner in ("do", "compensate"):
            waiting.append((node.get(inner), f"{field}.{inner}"))
        branches = node.get("branches")
        for no, branch in enumerate(branches if isinstance(branches, list) else ()):
            yield from references(branch, f"{field}.branches[{no}].")


def _require_calls(identity: Identity, definition: Any) -> None:
    """Raise ``forbidden`` unless ``identity`` may call everything that the definition calls, and read what it waits for."""
    for found in references(definition):
        access.require(identity, _NEEDED[found.kind], found.name if found.kind == "function" else None)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[api.NodeChange]:
    """In the order of the newer one, what is gone last."""
    old = {node["node_key"]: node for node in before["nodes"]}
    new = {node["node_key"]: node for node in after["nodes"]}
    for key, node in new.items():
        if key not in old:
            yield api.NodeChange(node_key=key, change="added", before=None, after=node)
        elif old[key] != node:
            yield api.NodeChange(node_key=key, change="changed", before=old[key], after=node)
    for key, node in old.items():
        if key not in new:
            yield api.NodeChange(node_key=key, change="removed", before=node, after=None)


def _number(req: Req[None, Any], name: str) -> int:
    """A version in the path."""
    text = req.params[name]
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) < 2**31):
        raise invalid(name, "a version number")
    return int(text)


def _would_be(workflow: WorkflowRecord, definition: dict[str, Any], subject: str) -> VersionRecord:
    nodes = len(definition["nodes"])
    return VersionRecord(workflow.next_version, nodes, subject, workflow.updated_at, definition)


def _members(workflow: WorkflowRecord, version: VersionSummary) -> dict[str, Any]:
    return {
        "workflow": workflow.name,
        "version": version.version,
        "active": version.version == workflow.active_version,
        "nodes": version.nodes,
        "created_by": version.created_by,
        "created_at": version.created_at,
    }


def _detail(workflow: WorkflowRecord, version: VersionRecord) -> api.WorkflowVersionDetail:
    return api.WorkflowVersionDetail(**_members(workflow, version), definition=version.definition)
