"""Triggers: brokers, files, tables and pages that call functions."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from nova.api.table import BY_HANDLER, Model, Page, PageQuery, Plane, Route
from nova.domain.asyncs import MAX_ATTEMPTS
from nova.domain.names import NAME, is_qualifier
from nova.domain.trigger import (
    MAX_BATCH,
    MAX_INFLIGHT,
    MAX_WINDOW_MS,
    OnError,
    State,
    TargetType,
    TriggerType,
)


def _qualifier(text: str) -> str:
    if not is_qualifier(text):
        raise ValueError("a version number, an alias, live or $LATEST")
    return text


Name = Annotated[str, Field(pattern=NAME)]
Target = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$", description="its name")]


class Batch(Model):
    """Several events as one call, whose input is then a list of them."""

    size: int = Field(1, ge=1, le=MAX_BATCH, description="events at most")
    window_ms: int = Field(0, ge=0, le=MAX_WINDOW_MS, description="how long a batch waits to become full")


class TriggerFields(Model):
    """What is called with the events of a source, and how.

    ``config`` depends on the type. Passwords in it are stored, and shown as ``***``; sent back so, they stay as they are.
    Events are acknowledged at the source when the target has succeeded or ``on_error`` was done: at least once.
    """

    target_type: TargetType = "function"
    target: Target
    qualifier: Annotated[str, AfterValidator(_qualifier)] | None = None
    enabled: bool = True
    config: dict[str, Any]
    filters: list[dict[str, Any]] = Field([], description="only events that fit all of them, as for subscriptions")
    batch: Batch = Batch()
    max_inflight: int = Field(10, ge=1, le=MAX_INFLIGHT, description="calls under way at once")
    on_error: OnError | None = Field(
        None,
        description="after max_attempts: dlq (default for functions), drop, or retry without end (default for the others)",
    )
    max_attempts: int = Field(3, ge=1, le=MAX_ATTEMPTS, description="executions for one event, the first included")


class TriggerCreate(TriggerFields):
    name: Name = Field(description="unique in the namespace")
    type: TriggerType


class TriggerPatch(Model):
    """A merge patch: null means the default; ``config`` merges by key."""

    name: Name | None = None
    target_type: TargetType | None = None
    target: Target | None = None
    qualifier: str | None = None
    enabled: bool | None = None
    config: dict[str, Any] | None = None
    filters: list[dict[str, Any]] | None = None
    batch: dict[str, Any] | None = None
    max_inflight: int | None = None
    on_error: OnError | None = None
    max_attempts: int | None = None


class Status(Model):
    """``lag`` are messages that wait at the source; null when it cannot say. The counts are of events since the trigger was
    made; a filtered event counts as processed. ``node`` is where it runs; null: nowhere, or the gateway serves it."""

    state: State
    last_error: str | None
    lag: int | None
    received: int
    processed: int
    failed: int
    last_event_at: datetime | None
    node: str | None


class Trigger(TriggerFields):
    id: str
    name: str
    type: TriggerType
    on_error: OnError
    state: State
    created_by: str
    created_at: datetime
    updated_at: datetime


class Tested(Model):
    """``error`` null: the source can be reached with this configuration."""

    ok: bool
    error: str | None


class TriggerQuery(PageQuery):
    type: TriggerType | None = None
    target: Target | None = Field(None, description="only triggers of this target")
    enabled: bool | None = None


class DryRun(Model):
    dry_run: bool = Field(False, description="check everything, write nothing, answer what it would be")


_MANAGE = "trigger:manage"
_READ = "trigger:read"
_ITEM = "/triggers/{id}"

ROUTES: tuple[Route, ...] = (
    Route(
        op="trigger.create",
        method="POST",
        path="/triggers",
        summary="Call a function, a workflow or a topic with the events of a source",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="trigger.create",
        body=TriggerCreate,
        query=DryRun,
        answer=Trigger,
        status=201,
        resource=BY_HANDLER,
        tag="triggers",
    ),
    Route(
        op="trigger.list",
        method="GET",
        path="/triggers",
        summary="Triggers, newest first",
        plane=Plane.CONTROL,
        permission=_READ,
        query=TriggerQuery,
        answer=Page[Trigger],
        resource=BY_HANDLER,
        tag="triggers",
    ),
    Route(
        op="trigger.get",
        method="GET",
        path=_ITEM,
        summary="One trigger, without its passwords",
        plane=Plane.CONTROL,
        permission=_READ,
        answer=Trigger,
        resource=BY_HANDLER,
        tag="triggers",
    ),
    Route(
        op="trigger.patch",
        method="PATCH",
        path=_ITEM,
        summary="Change a trigger; it acts within a second",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="trigger.update",
        body=TriggerPatch,
        query=DryRun,
        answer=Trigger,
        resource=BY_HANDLER,
        tag="triggers",
    ),
    Route(
        op="trigger.delete",
        method="DELETE",
        path=_ITEM,
        summary="Delete a trigger; what waits at its source stays there",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="trigger.delete",
        status=204,
        resource=BY_HANDLER,
        tag="triggers",
    ),
    Route(
        op="trigger.status",
        method="GET",
        path=_ITEM + "/status",
        summary="How a trigger is: state, lag, counts, the last error",
        plane=Plane.CONTROL,
        permission=_READ,
        answer=Status,
        resource=BY_HANDLER,
        tag="triggers",
    ),
    Route(
        op="trigger.test",
        method="POST",
        path=_ITEM + "/test",
        summary="Connect to the source, read nothing, disconnect",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="trigger.test",
        answer=Tested,
        resource=BY_HANDLER,
        tag="triggers",
    ),
    Route(
        op="trigger.pause",
        method="POST",
        path=_ITEM + "/pause",
        summary="Take nothing from the source until it is resumed",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="trigger.pause",
        answer=Trigger,
        resource=BY_HANDLER,
        tag="triggers",
    ),
    Route(
        op="trigger.resume",
        method="POST",
        path=_ITEM + "/resume",
        summary="Go on where it was",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="trigger.resume",
        answer=Trigger,
        resource=BY_HANDLER,
        tag="triggers",
    ),
)
