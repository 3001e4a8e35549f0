"""Durable executions: functions whose steps are written down, and which go on after a crash."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from nova.api.calls import CallError
from nova.api.table import BY_HANDLER, Empty, Model, Page, PageQuery, Plane, Route
from nova.domain.durable import MAX_LIFE_S, ExecutionStatus

StepKind = Literal["step", "context", "wait", "callback", "chained_invoke"]
StepStatus = Literal["started", "pending", "ready", "succeeded", "failed", "cancelled", "timed_out", "stopped"]
Label = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[!-~]+$")]
"""Visible ASCII characters."""


class InvokeDurable(Model):
    """Begin an execution. ``execution_id`` is a name of the caller's own: a second start with it is the first one."""

    input: Any = Field(default_factory=dict, description="what the handler gets; default {}")
    execution_id: Label | None = None
    timeout_s: int = Field(MAX_LIFE_S, ge=1, le=MAX_LIFE_S, description="seconds until it has to have ended")
    qualifier: str | None = Field(None, max_length=64, description="a version, an alias, live or $LATEST")


class WaitExecution(Model):
    wait_s: float = Field(0, ge=0, le=60, description="answer when it has ended, or after this many seconds")


class DurableItem(Model):
    """``wake_at``: when a suspended one goes on by itself, at the latest."""

    id: str
    function: str
    version: int
    name: str | None
    status: ExecutionStatus
    steps: int = Field(description="operations that are recorded")
    wake_at: datetime | None
    created_at: datetime
    ended_at: datetime | None


class DurableExecution(DurableItem):
    """``input`` and ``output`` are left out (null) for callers without ``payload:read``."""

    input: Any
    output: Any
    error: CallError | None
    caller: str
    deadline_at: datetime


class BegunExecution(Model):
    execution_id: str
    status: ExecutionStatus


class DurableStep(Model):
    """One operation, in the order of recording. ``id`` is its place in the code, ``parent`` the context it belongs to.

    ``callback_id`` is there for callbacks that wait.
    """

    seq: int
    id: str
    parent: str | None
    name: str | None
    kind: StepKind
    status: StepStatus
    attempt: int
    output: Any
    error: CallError | None
    wake_at: datetime | None
    callback_id: str | None
    started_at: datetime
    duration_ms: float | None


class DurableQuery(PageQuery):
    status: str | None = Field(None, max_length=128, description="one or several, separated by commas")
    name: Label | None = Field(None, description="the name it was begun with")
    since: AwareDatetime | None = Field(None, description="begun at or after")


class DurableEvent(Model):
    """Completes the oldest ``wait_event`` of this name, or is kept until there is one."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    payload: Any = None


class CancelDurable(Model):
    reason: Annotated[str, Field(max_length=1024)] = ""


class SucceedCallback(Model):
    payload: Any = None


class FailCallback(Model):
    type: Annotated[str, Field(min_length=1, max_length=256)] = "Error"
    message: Annotated[str, Field(max_length=8192)] = ""


class Taken(Model):
    """It is committed."""

    status: Literal["accepted"] = "accepted"


_ITEM = "/durable-executions/{id}"
_CALLBACK = "/durable-callbacks/{id}"
_READ = "async:read"
_MANAGE = "async:manage"


def _post(op: str, path: str, summary: str, body: type[Model]) -> Route:
    return Route(
        op=op,
        method="POST",
        path=path,
        summary=summary,
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit=op,
        body=body,
        answer=Taken,
        status=202,
        resource=BY_HANDLER,
        tag="durable",
    )


ROUTES: tuple[Route, ...] = (
    Route(
        op="function.invoke_durable",
        method="POST",
        path="/functions/{name}/invoke-durable",
        summary="Begin an execution of a durable function; 200 with it when it ends within wait_s",
        plane=Plane.EXECUTION,
        permission="function:invoke",
        body=InvokeDurable,
        query=WaitExecution,
        answer=BegunExecution,
        status=202,
        tag="durable",
    ),
    Route(
        op="function.durable",
        method="GET",
        path="/functions/{name}/durable-executions",
        summary="Executions of a durable function, newest first",
        plane=Plane.CONTROL,
        permission=_READ,
        query=DurableQuery,
        answer=Page[DurableItem],
        tag="durable",
    ),
    Route(
        op="durable.get",
        method="GET",
        path=_ITEM,
        summary="One execution",
        plane=Plane.CONTROL,
        permission=_READ,
        query=WaitExecution,
        answer=DurableExecution,
        resource=BY_HANDLER,
        tag="durable",
    ),
    Route(
        op="durable.steps",
        method="GET",
        path=_ITEM + "/steps",
        summary="What an execution has recorded, in that order",
        plane=Plane.CONTROL,
        permission=_READ,
        query=PageQuery,
        answer=Page[DurableStep],
        resource=BY_HANDLER,
        tag="durable",
    ),
    _post("durable.send", _ITEM + "/events", "Send an event to an execution", DurableEvent),
    _post("durable.cancel", _ITEM + "/cancel", "End an execution, also while it runs", CancelDurable),
    _post("durable.retry", _ITEM + "/retry", "Go on with one that failed, from the first operation that did", Empty),
    _post("durable.callback_succeed", _CALLBACK + "/succeed", "Complete a callback", SucceedCallback),
    _post("durable.callback_fail", _CALLBACK + "/fail", "Let a callback fail", FailCallback),
    _post("durable.callback_heartbeat", _CALLBACK + "/heartbeat", "Say that a callback is being worked on", Empty),
)
