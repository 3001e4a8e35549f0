"""Workflows and their versions. What happens when one is run is in :mod:`nova.api.runs`."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from nova.api.table import Empty, Model, Page, PageQuery, Plane, Route
from nova.domain.names import NAME

OnLimit = Literal["queue", "reject"]
OnFailure = Literal["cancel", "finish"]
MAX_RUN_S = 365 * 86_400
MAX_CONCURRENT_RUNS = 100_000
MAX_TAGS = 64

Name = Annotated[str, Field(pattern=NAME)]
Text = Annotated[str, Field(max_length=1024)]
Tags = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=128)], Annotated[str, Field(max_length=256)]],
    Field(max_length=MAX_TAGS),
]
Concurrent = Annotated[
    int, Field(ge=0, le=MAX_CONCURRENT_RUNS, description="runs at the same time; 0: as many as come")
]
RunSeconds = Annotated[int, Field(ge=1, le=MAX_RUN_S)]


class WorkflowFields(Model):
    """What may be changed on a workflow; it acts on runs that begin afterwards.

    ``on_limit``: a run above ``max_concurrent_runs`` waits, or is refused. ``on_failure``: when a node fails for good, those that
    run beside it are cancelled, or finish. ``default_timeout_s`` bounds a run from its creation; null: 365 days. ``halted``:
    no run begins.
    """

    description: Text = ""
    tags: Tags = {}
    max_concurrent_runs: Concurrent = 0
    on_limit: OnLimit = "queue"
    on_failure: OnFailure = "cancel"
    default_timeout_s: RunSeconds | None = None
    halted: bool = False


class WorkflowCreate(WorkflowFields):
    name: Name


class WorkflowPatch(Model):
    """A merge patch: null means the default; ``tags`` merge by key."""

    description: Text | None = None
    tags: dict[str, str | None] | None = None
    max_concurrent_runs: Concurrent | None = None
    on_limit: OnLimit | None = None
    on_failure: OnFailure | None = None
    default_timeout_s: RunSeconds | None = None
    halted: bool | None = None


class Workflow(WorkflowFields):
    """``active_version`` is what runs that name none begin with; null before the first was published."""

    id: str
    name: str
    active_version: int | None
    latest_version: int | None
    etag: str
    created_by: str
    created_at: datetime
    updated_at: datetime


class Definition(Model):
    """A directed graph without cycles. What nodes and edges may say is on the page about workflows."""

    nodes: list[Any] = Field(min_length=1)
    edges: list[Any] = Field(default=[], description="{from, to, when}")
    output: Any = Field(None, description="a mapping; default: what the last nodes gave, by node_key")


class WorkflowVersion(Model):
    """One published definition; it never changes."""

    workflow: str
    version: int
    active: bool
    nodes: int = Field(description="how many, without those inside of others")
    created_by: str
    created_at: datetime


class WorkflowVersionDetail(WorkflowVersion):
    definition: dict[str, Any]


class Validation(Model):
    """The definition is valid. ``functions`` and ``workflows`` are what it would call, ``topics`` what it would wait for."""

    valid: bool
    nodes: int
    functions: list[str]
    workflows: list[str]
    topics: list[str]


class NodeChange(Model):
    """One node that is not the same in both versions; ``before`` or ``after`` is null where there is none."""

    node_key: str
    change: Literal["added", "removed", "changed"]
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class VersionDiff(Model):
    """What is different in version ``b``."""

    a: int
    b: int
    nodes: list[NodeChange]
    edges_added: list[dict[str, Any]]
    edges_removed: list[dict[str, Any]]
    output_changed: bool


class WorkflowQuery(PageQuery):
    q: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="text in the name or the description"
    )


class DryRun(Model):
    dry_run: bool = Field(False, description="check everything, write nothing, answer what it would be")


class PublishQuery(DryRun):
    activate: bool = Field(True, description="false: runs go on beginning with the version that is active now")


class DeleteQuery(Model):
    cancel_runs: bool = Field(False, description="cancel runs that are active instead of refusing")


_WORKFLOW = "/workflows/{name}"
_VERSIONS = _WORKFLOW + "/versions"
_READ, _MANAGE = "workflow:read", "workflow:manage"


def _route(op: str, method: str, path: str, summary: str, permission: str, **more: Any) -> Route:
    return Route(
        op=f"workflow.{op}",
        method=method,
        path=path,
        summary=summary,
        plane=Plane.CONTROL,
        permission=permission,
        resource=None,
        tag="workflows",
        **more,
    )


ROUTES = (
    _route(
        "create",
        "POST",
        "/workflows",
        "Make a workflow; it can run when a version is published",
        _MANAGE,
        audit="workflow.create",
        body=WorkflowCreate,
        query=DryRun,
        answer=Workflow,
        status=201,
    ),
    _route("list", "GET", "/workflows", "Workflows, newest first", _READ, query=WorkflowQuery, answer=Page[Workflow]),
    _route(
        "validate",
        "POST",
        "/workflows/validate",
        "Check a definition; every problem is named at once",
        _READ,
        body=Definition,
        answer=Validation,
    ),
    _route("get", "GET", _WORKFLOW, "One workflow", _READ, answer=Workflow),
    _route(
        "patch",
        "PATCH",
        _WORKFLOW,
        "Change a workflow; runs that are under way stay as they are",
        _MANAGE,
        audit="workflow.update",
        body=WorkflowPatch,
        query=DryRun,
        answer=Workflow,
    ),
    _route(
        "delete",
        "DELETE",
        _WORKFLOW,
        "Delete a workflow; its name is free afterwards, its runs are kept for their time",
        _MANAGE,
        audit="workflow.delete",
        query=DeleteQuery,
        status=204,
    ),
    _route(
        "version.create",
        "POST",
        _VERSIONS,
        "Publish a definition as the next version; one that is there already is that version",
        _MANAGE,
        audit="workflow.publish",
        body=Definition,
        query=PublishQuery,
        answer=WorkflowVersionDetail,
        status=201,
    ),
    _route(
        "version.list",
        "GET",
        _VERSIONS,
        "Versions, newest first",
        _READ,
        query=PageQuery,
        answer=Page[WorkflowVersion],
    ),
    _route(
        "version.get", "GET", _VERSIONS + "/{version}", "One version", _READ, query=Empty, answer=WorkflowVersionDetail
    ),
    _route(
        "version.activate",
        "POST",
        _VERSIONS + "/{version}/activate",
        "Begin new runs with this version",
        _MANAGE,
        audit="workflow.activate",
        answer=Workflow,
    ),
    _route(
        "version.diff",
        "GET",
        _VERSIONS + "/{a}/diff/{b}",
        "What is different in version b",
        _READ,
        answer=VersionDiff,
    ),
)
