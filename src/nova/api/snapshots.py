"""Snapshots: functions that a node has loaded once and keeps, so that further instances need not load them."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from nova.api.table import BY_HANDLER, Model, Page, PageQuery, Plane, Route


class SnapshotsQuery(PageQuery):
    function: str | None = Field(None, description="only this function's")


class SnapshotQuery(Model):
    version: int | None = Field(None, ge=1, description="default: the live one; for DELETE: every one")


class SnapshotView(Model):
    """``hits`` counts the instances that came from it. ``refused``: the function cannot be kept loaded, and ``reason`` says
    why; its instances come from templates."""

    function: str
    version: int
    backend: str
    node: str
    kind: Literal["vm", "zygote"]
    status: Literal["making", "ready", "refused"]
    reason: str | None
    memory_mb: float
    state_mb: float = Field(description="on disk; zygotes have nothing there")
    created_at: datetime
    hits: int


ROUTES = (
    Route(
        op="snapshot.list",
        method="GET",
        path="/snapshots",
        summary="The functions that the answering node keeps loaded, and those it cannot, newest first",
        plane=Plane.EXECUTION,
        permission="snapshot:read",
        query=SnapshotsQuery,
        answer=Page[SnapshotView],
        resource=BY_HANDLER,
        tag="snapshots",
    ),
    Route(
        op="snapshot.create",
        method="POST",
        path="/functions/{name}/snapshot",
        summary="Load the function once more and keep it; 422 where that is not possible",
        plane=Plane.EXECUTION,
        permission="snapshot:write",
        audit="snapshot.create",
        query=SnapshotQuery,
        answer=SnapshotView,
        status=202,
        tag="snapshots",
    ),
    Route(
        op="snapshot.delete",
        method="DELETE",
        path="/functions/{name}/snapshot",
        summary="Keep the function loaded no longer; instances that came from it go on",
        plane=Plane.EXECUTION,
        permission="snapshot:write",
        audit="snapshot.delete",
        query=SnapshotQuery,
        status=204,
        tag="snapshots",
    ),
)
