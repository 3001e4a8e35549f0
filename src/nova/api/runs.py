"""Runs of workflows: beginning, looking at and steering them, and the approvals that they wait for."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from nova.api.table import Kind, Model, Page, PageQuery, Plane, Route
from nova.api.workflows import Name, RunSeconds, Text

RunStatus = Literal["pending", "running", "paused", "succeeded", "failed", "cancelled", "timed_out", "compensating"]
NodeStatus = Literal["pending", "ready", "running", "waiting", "succeeded", "failed", "skipped", "cancelled"]
ApprovalStatus = Literal["pending", "approved", "rejected", "expired", "cancelled"]
MAX_WAIT_S = 60
RUN_ID = r"^[A-Za-z0-9._:-]{1,128}$"
Key = Annotated[str, Field(min_length=1, max_length=128)]


class RunCreate(Model):
    """``run_id`` is a name of the caller's own: a second run of the workflow with it is the first one.

    ``timeout_s`` bounds the run from now on, waiting included; default: the workflow's ``default_timeout_s``.
    """

    input: Any = Field(default={}, description="any JSON, at most 1 MiB; default {}")
    version: int | None = Field(None, ge=1, description="default: the active one")
    run_id: str | None = Field(None, pattern=RUN_ID)
    timeout_s: RunSeconds | None = None


class Failure(Model):
    """``type`` is the class that a function raised, or a ``Nova.*`` type that the platform found out; ``node_key`` where it came
    from."""

    type: str
    message: str
    node_key: str | None = None


class NodeAttempt(Model):
    """One call of a function that has ended. ``request_id`` leads to its log; ``generation`` grows with each retry by hand."""

    no: int
    generation: int
    purpose: Literal["call", "compensation"]
    started_at: datetime
    duration_ms: float
    request_id: str
    error: Failure | None


class MapItems(Model):
    """How far a map is; ``total`` is null before it has begun. With a ``batch_size`` these are batches."""

    total: int | None
    succeeded: int
    failed: int
    running: int


class Node(Model):
    """One node of a run, or (``item``) what a map does for one item. ``node_key`` is a path when the node is inside of another:
    ``both/1/mail`` is in the second branch of ``both``. ``child_run_id`` is the run of a sub-workflow. ``compensation`` says how
    undoing it went.

    ``input`` and ``output`` are for callers who hold ``payload:read``; null for others.
    """

    node_key: str
    node_type: str
    item: int | None
    status: NodeStatus
    attempt: int
    started_at: datetime | None
    finished_at: datetime | None
    duration_ms: float | None
    waits_until: datetime | None
    child_run_id: str | None
    approval_id: str | None
    error: Failure | None
    compensation: Literal["succeeded", "failed"] | None
    compensation_error: Failure | None
    items: MapItems | None
    attempts: list[NodeAttempt]
    input: Any = None
    output: Any = None


class Run(Model):
    """``run_id`` is the name that its caller gave it. ``source`` is what began it: ``api``, ``run:<id>``, ``subscription:<id>`` …
    ``parent_run_id`` is the run that it is a sub-workflow of."""

    id: str
    workflow: str
    version: int
    run_id: str | None
    status: RunStatus
    source: str
    caller: str
    parent_run_id: str | None
    forked_from: str | None
    error: Failure | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime
    duration_ms: float | None


class RunDetail(Run):
    """``input`` and ``output`` are for callers who hold ``payload:read``; null for others."""

    nodes: list[Node]
    input: Any = None
    output: Any = None


class Cancel(Model):
    reason: Text = Field("", description="kept with the run")
    compensate: bool = Field(True, description="undo what was done, as compensations say")


class Retry(Model):
    """``from``: failed (what failed or was never reached), start, or a node_key: that node and all after it."""

    from_: Key = Field("failed", alias="from")
    input: Any = Field(None, description="of the node, or with start of the run; default: as before")


class Fork(Model):
    """A new run that begins at a node with the results of the nodes before it."""

    from_: Key = Field("start", alias="from", description="start, or a node_key")
    input: Any = Field(None, description="of the node, or with start of the run; default: as before")
    version: int | None = Field(None, ge=1, description="default: the run's own")


class SendEvent(Model):
    payload: Any = Field(default={}, description="what the waiting node gives as its output; at most 1 MiB")


class EventAccepted(Model):
    """The event is kept: a node that waits for it, now or later, goes on with it."""

    run: str
    key: str


class Approval(Model):
    """A question to people about ``input``. ``approvers`` are subjects such as ``key:alice``; empty: whoever holds
    ``workflow:approve``. ``form_schema`` is what the payload of an approval must fit."""

    id: str
    workflow: str
    run: str
    node_key: str
    title: str
    form_schema: dict[str, Any] | None
    approvers: list[str]
    status: ApprovalStatus
    decided_by: str | None
    decided_at: datetime | None
    comment: str
    input: Any
    payload: Any
    expires_at: datetime | None
    created_at: datetime


class Decision(Model):
    comment: Text = ""
    payload: Any = Field(default=None, description="for the nodes that follow; at most 1 MiB")


class StartQuery(Model):
    wait_s: float = Field(
        0, ge=0, le=MAX_WAIT_S, description="answer when the run has ended, or after this many seconds"
    )


class RunQuery(PageQuery):
    status: str | None = Field(None, max_length=128, description="one or several, separated by commas")
    version: int | None = Field(None, ge=1)
    since: AwareDatetime | None = Field(None, description="created at that time or later")


class ScopeRunQuery(PageQuery):
    status: str | None = Field(None, max_length=128, description="one or several, separated by commas")
    workflow: Name | None = None
    since: AwareDatetime | None = Field(None, description="created at that time or later")


class ItemQuery(PageQuery):
    status: str | None = Field(None, max_length=128, description="one or several, separated by commas")


class ApprovalQuery(PageQuery):
    status: ApprovalStatus | None = None
    run: str | None = Field(None, max_length=64, description="only of this run")


_RUNS = "/workflows/{name}/runs"
_RUN = _RUNS + "/{id}"
_READ, _INVOKE, _MANAGE, _APPROVE = "workflow:read", "workflow:invoke", "workflow:manage", "workflow:approve"


def _route(op: str, method: str, path: str, summary: str, permission: str, **more: Any) -> Route:
    return Route(
        op=op,
        method=method,
        path=path,
        summary=summary,
        plane=Plane.CONTROL,
        permission=permission,
        resource=None,
        tag="runs",
        **more,
    )


def _steer(verb: str, summary: str, body: type[Model] | None = None, **more: Any) -> Route:
    return _route(
        f"run.{verb}",
        "POST",
        f"{_RUN}/{verb}",
        summary,
        _INVOKE,
        audit=f"run.{verb}",
        body=body,
        **{"answer": Run, **more},
    )


ROUTES = (
    _route(
        "run.create",
        "POST",
        _RUNS,
        "Run a workflow; committed when the answer comes",
        _INVOKE,
        audit="run.create",
        body=RunCreate,
        query=StartQuery,
        answer=RunDetail,
        status=201,
    ),
    _route("run.list", "GET", _RUNS, "Runs of a workflow, newest first", _READ, query=RunQuery, answer=Page[Run]),
    _route(
        "run.all",
        "GET",
        "/runs",
        "Runs of every workflow, newest first",
        _READ,
        query=ScopeRunQuery,
        answer=Page[Run],
    ),
    _route("run.find", "GET", "/runs/{id}", "A run whose workflow is not known", _READ, answer=RunDetail),
    _route(
        "run.get",
        "GET",
        _RUN,
        "A run with its nodes: attempts, inputs, outputs, errors, times",
        _READ,
        query=StartQuery,
        answer=RunDetail,
    ),
    _route(
        "run.items",
        "GET",
        _RUN + "/nodes/{node}/items",
        "What a map did for each item, in their order",
        _READ,
        query=ItemQuery,
        answer=Page[Node],
    ),
    _route(
        "run.events",
        "GET",
        _RUN + "/events",
        "What happens in a run, from its beginning to its end, as it happens",
        _READ,
        kind=Kind.SSE,
    ),
    _steer("cancel", "End a run; calls that it is waiting for are cancelled", Cancel),
    _steer("pause", "Begin no further node until it is resumed; what runs finishes"),
    _steer("resume", "Go on with a paused run"),
    _steer("retry", "Go on with a run that has ended; what had succeeded is not done again", Retry),
    _steer("fork", "A new run from a node of this one", Fork, answer=RunDetail, status=201),
    _route(
        "run.send",
        "POST",
        _RUN + "/events/{key}",
        "Send what a node waits for, or will wait for",
        _INVOKE,
        audit="run.send",
        body=SendEvent,
        answer=EventAccepted,
        status=202,
    ),
    _route(
        "approval.list",
        "GET",
        "/approvals",
        "Approvals, newest first",
        _READ,
        query=ApprovalQuery,
        answer=Page[Approval],
    ),
    _route("approval.get", "GET", "/approvals/{id}", "One approval", _READ, answer=Approval),
    _route(
        "approval.approve",
        "POST",
        "/approvals/{id}/approve",
        "Say yes; the run goes on",
        _APPROVE,
        audit="approval.approve",
        body=Decision,
        answer=Approval,
    ),
    _route(
        "approval.reject",
        "POST",
        "/approvals/{id}/reject",
        "Say no; the node fails with Nova.Rejected",
        _APPROVE,
        audit="approval.reject",
        body=Decision,
        answer=Approval,
    ),
)
