"""Schedules: functions that are called, and workflows that are run, at times of their own."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field

from nova.api.table import BY_HANDLER, Empty, Model, Page, PageQuery, Plane, Route
from nova.domain.asyncs import MAX_ATTEMPTS
from nova.domain.names import LIVE, NAME, is_qualifier

Overlap = Literal["skip", "queue", "allow", "cancel_previous"]
CatchUp = Literal["none", "last", "all"]
RunStatus = Literal["queued", "fired", "skipped", "missed", "failed"]
TargetType = Literal["function", "workflow"]
MAX_PREVIEW = 100
MAX_WINDOW_S = 7 * 86_400
MAX_JITTER_S = 3600
MAX_RUN_S = 365 * 86_400


def _qualifier(text: str) -> str:
    if not is_qualifier(text):
        raise ValueError("a version number, an alias, live or $LATEST")
    return text


def _version(text: str) -> str:
    if text != LIVE and not (text.isascii() and text.isdigit() and 0 < int(text[:12]) < 2**31):
        raise ValueError("a version number, or live")
    return text


Expression = Annotated[str, Field(min_length=1, max_length=256)]
Zone = Annotated[str, Field(min_length=1, max_length=64, description="IANA name, such as Europe/Berlin")]
Name = Annotated[str, Field(pattern=NAME)]


class ScheduleTimes(Model):
    """When something is called, and with what.

    ``cron_expression``: 5 fields, 6 with leading seconds, a macro such as ``@daily``, or ``@every`` with a duration of at
    least 1s; ``CRON_TZ=Zone`` before it stands above ``timezone``. ``input``: what the target gets; without it, an
    envelope (CloudEvents 1.0) that tells of the firing. ``catch_up``: what happens to instants at which nothing could fire.
    """

    cron_expression: Expression
    timezone: Zone = "UTC"
    input: Any = None
    enabled: bool = True
    overlap_policy: Overlap = Field("skip", description="when what the instant before it made has not ended")
    catch_up: CatchUp = Field("none", description="instants that were missed by more than 10 seconds")
    catch_up_window_s: int = Field(
        3600, ge=1, le=MAX_WINDOW_S, description="missed instants older than this never fire"
    )
    jitter_s: int = Field(
        0, ge=0, le=MAX_JITTER_S, description="fires up to so much later, always the same for an instant"
    )
    start_at: AwareDatetime | None = Field(None, description="no instant before")
    end_at: AwareDatetime | None = Field(None, description="no instant after")


class ScheduleCreate(ScheduleTimes):
    """Of a function."""

    name: Name | None = Field(None, description="unique among the target's schedules; made up when it is not given")
    qualifier: Annotated[str, AfterValidator(_qualifier)] | None = None
    max_attempts: int | None = Field(
        None, ge=1, le=MAX_ATTEMPTS, description="executions of one run; default: the function's async_policy"
    )


class WorkflowScheduleCreate(ScheduleTimes):
    """Of a workflow: each instant begins a run."""

    name: Name | None = Field(None, description="unique among the target's schedules; made up when it is not given")
    qualifier: Annotated[str, AfterValidator(_version)] | None = Field(
        None, description="the version that runs begin with; live, the default: whichever is active then"
    )
    timeout_s: int | None = Field(
        None, ge=1, le=MAX_RUN_S, description="of a run; default: the workflow's default_timeout_s"
    )


class SchedulePatch(Model):
    """A merge patch: null means the default; ``input`` is replaced as a whole. ``max_attempts`` is for schedules of functions,
    ``timeout_s`` for those of workflows."""

    name: Name | None = None
    cron_expression: Expression | None = None
    timezone: Zone | None = None
    input: Any = None
    qualifier: str | None = None
    enabled: bool | None = None
    overlap_policy: Overlap | None = None
    catch_up: CatchUp | None = None
    catch_up_window_s: int | None = None
    jitter_s: int | None = None
    start_at: AwareDatetime | None = None
    end_at: AwareDatetime | None = None
    max_attempts: int | None = None
    timeout_s: int | None = None


class Schedule(ScheduleTimes):
    """``next_run_at`` is the next instant, before any jitter; null when it is paused or there is none any more.

    ``last_status`` is what became of the last instant. In its runs ``invocation_id`` leads to the job, ``run_id`` to the run of
    the workflow.
    """

    id: str
    name: str
    target_type: TargetType
    target: str
    qualifier: str | None
    max_attempts: int | None
    timeout_s: int | None
    next_run_at: datetime | None
    last_run_at: datetime | None
    last_status: RunStatus | None
    created_by: str
    created_at: datetime
    updated_at: datetime


class ScheduleRun(Model):
    """What became of one instant.

    fired: a job (``invocation_id``) or a run of a workflow (``run_id``) was made of it; ``outcome`` is its status, null when it
    is not kept any more. queued: waits for the one before it. skipped, missed, failed: nothing was made, and ``reason`` says
    why. A ``missed`` row stands for all instants from it on at which nothing could fire.
    """

    scheduled_for: datetime
    fired_at: datetime | None
    status: RunStatus
    reason: str
    catch_up: bool
    invocation_id: str | None
    run_id: str | None
    outcome: str | None


class Preview(Model):
    """The next instants; fewer than asked for when there are no more."""

    cron_expression: str
    timezone: str
    instants: list[datetime]


class ScheduleQuery(PageQuery):
    target: Name | None = Field(None, description="only schedules of this function or workflow")
    target_type: TargetType | None = None
    enabled: bool | None = None
    q: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="text in the name of the schedule or its target"
    )


class RunQuery(PageQuery):
    status: RunStatus | None = None


class DryRun(Model):
    dry_run: bool = Field(False, description="check everything, write nothing, answer what it would be")


class PreviewQuery(Model):
    cron: Expression
    timezone: Zone = "UTC"
    n: int = Field(10, ge=1, le=MAX_PREVIEW)
    after: AwareDatetime | None = Field(None, description="instants later than this; default: now")


_MANAGE = "schedule:manage"
_READ = "function:read"
_READ_WORKFLOW = "workflow:read"
_OF_FUNCTION = "/functions/{name}/schedules"
_OF_WORKFLOW = "/workflows/{name}/schedules"
_ITEM = "/schedules/{id}"

ROUTES = (
    Route(
        op="function.schedule.create",
        method="POST",
        path=_OF_FUNCTION,
        summary="Call a function at times of its own",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="schedule.create",
        body=ScheduleCreate,
        query=DryRun,
        answer=Schedule,
        status=201,
        tag="schedules",
    ),
    Route(
        op="function.schedule.list",
        method="GET",
        path=_OF_FUNCTION,
        summary="Schedules of a function, newest first",
        plane=Plane.CONTROL,
        permission=_READ,
        query=PageQuery,
        answer=Page[Schedule],
        tag="schedules",
    ),
    Route(
        op="function.schedule.get",
        method="GET",
        path=_OF_FUNCTION + "/{id}",
        summary="One schedule of a function",
        plane=Plane.CONTROL,
        permission=_READ,
        answer=Schedule,
        tag="schedules",
    ),
    Route(
        op="function.schedule.patch",
        method="PATCH",
        path=_OF_FUNCTION + "/{id}",
        summary="Change a schedule; it acts within a second",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="schedule.update",
        body=SchedulePatch,
        query=DryRun,
        answer=Schedule,
        tag="schedules",
    ),
    Route(
        op="function.schedule.delete",
        method="DELETE",
        path=_OF_FUNCTION + "/{id}",
        summary="Delete a schedule with its history",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="schedule.delete",
        status=204,
        tag="schedules",
    ),
    Route(
        op="workflow.schedule.create",
        method="POST",
        path=_OF_WORKFLOW,
        summary="Run a workflow at times of its own",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="schedule.create",
        body=WorkflowScheduleCreate,
        query=DryRun,
        answer=Schedule,
        status=201,
        resource=None,
        tag="schedules",
    ),
    Route(
        op="workflow.schedule.list",
        method="GET",
        path=_OF_WORKFLOW,
        summary="Schedules of a workflow, newest first",
        plane=Plane.CONTROL,
        permission=_READ_WORKFLOW,
        query=PageQuery,
        answer=Page[Schedule],
        resource=None,
        tag="schedules",
    ),
    Route(
        op="workflow.schedule.get",
        method="GET",
        path=_OF_WORKFLOW + "/{id}",
        summary="One schedule of a workflow",
        plane=Plane.CONTROL,
        permission=_READ_WORKFLOW,
        answer=Schedule,
        resource=None,
        tag="schedules",
    ),
    Route(
        op="workflow.schedule.patch",
        method="PATCH",
        path=_OF_WORKFLOW + "/{id}",
        summary="Change a schedule; it acts within a second",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="schedule.update",
        body=SchedulePatch,
        query=DryRun,
        answer=Schedule,
        resource=None,
        tag="schedules",
    ),
    Route(
        op="workflow.schedule.delete",
        method="DELETE",
        path=_OF_WORKFLOW + "/{id}",
        summary="Delete a schedule with its history",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="schedule.delete",
        status=204,
        resource=None,
        tag="schedules",
    ),
    Route(
        op="schedule.list",
        method="GET",
        path="/schedules",
        summary="Every schedule of the scope, newest first",
        plane=Plane.CONTROL,
        permission=_READ,
        query=ScheduleQuery,
        answer=Page[Schedule],
        resource=BY_HANDLER,
        tag="schedules",
    ),
    Route(
        op="schedule.preview",
        method="GET",
        path="/schedules/preview",
        summary="The next instants of an expression",
        plane=Plane.CONTROL,
        permission=_READ,
        query=PreviewQuery,
        answer=Preview,
        resource=BY_HANDLER,
        tag="schedules",
    ),
    Route(
        op="schedule.get",
        method="GET",
        path=_ITEM,
        summary="One schedule",
        plane=Plane.CONTROL,
        permission=_READ,
        answer=Schedule,
        resource=BY_HANDLER,
        tag="schedules",
    ),
    Route(
        op="schedule.patch",
        method="PATCH",
        path=_ITEM,
        summary="Change a schedule; it acts within a second",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="schedule.update",
        body=SchedulePatch,
        query=DryRun,
        answer=Schedule,
        resource=BY_HANDLER,
        tag="schedules",
    ),
    Route(
        op="schedule.delete",
        method="DELETE",
        path=_ITEM,
        summary="Delete a schedule with its history",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="schedule.delete",
        query=Empty,
        status=204,
        resource=BY_HANDLER,
        tag="schedules",
    ),
    Route(
        op="schedule.run",
        method="POST",
        path=_ITEM + "/run",
        summary="Fire a schedule now, whatever its times, its pause and its overlap policy say",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="schedule.run",
        answer=ScheduleRun,
        status=202,
        resource=BY_HANDLER,
        tag="schedules",
    ),
    Route(
        op="schedule.pause",
        method="POST",
        path=_ITEM + "/pause",
        summary="Fire nothing until it is resumed; what runs goes on",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="schedule.pause",
        answer=Schedule,
        resource=BY_HANDLER,
        tag="schedules",
    ),
    Route(
        op="schedule.resume",
        method="POST",
        path=_ITEM + "/resume",
        summary="Go on from now; the instants of the pause are gone",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="schedule.resume",
        answer=Schedule,
        resource=BY_HANDLER,
        tag="schedules",
    ),
    Route(
        op="schedule.runs",
        method="GET",
        path=_ITEM + "/runs",
        summary="What became of each instant, newest first",
        plane=Plane.CONTROL,
        permission=_READ,
        query=RunQuery,
        answer=Page[ScheduleRun],
        resource=BY_HANDLER,
        tag="schedules",
    ),
)
