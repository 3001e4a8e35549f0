"""Builds: installing the dependencies of one version."""

from datetime import datetime

from pydantic import Field

from nova.api.table import BY_HANDLER, Empty, Kind, Model, Page, PageQuery, Plane, Route
from nova.domain.build import BuildStatus


class Build(Model):
    """``artifact`` is the digest of what is mounted at ``/code``; ``cached``: an equal build was known.

    ``error`` ends with the last lines of output. A build whose builder was lost reads as ``queued`` until it is taken up.
    """

    id: str
    function: str
    version: int
    status: BuildStatus
    cached: bool
    activate: bool
    artifact: str | None
    toolchain: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    duration_ms: int | None


class Rebuild(Model):
    """Install again, without asking the cache. ``version``: default the newest deployed or activated."""

    version: int | None = Field(None, ge=1, lt=2**31, strict=True)
    activate: bool = Field(True, strict=True, description="make the version live when it is built and newer")


ROUTES = (
    Route(
        op="build.list",
        method="GET",
        path="/functions/{name}/builds",
        summary="Builds of a function, newest first",
        plane=Plane.CONTROL,
        permission="build:read",
        query=PageQuery,
        answer=Page[Build],
        tag="builds",
    ),
    Route(
        op="build.create",
        method="POST",
        path="/functions/{name}/builds",
        summary="Build a version again",
        plane=Plane.CONTROL,
        permission="build:manage",
        audit="build.create",
        body=Rebuild,
        answer=Build,
        status=202,
        tag="builds",
    ),
    Route(
        op="build.get",
        method="GET",
        path="/builds/{id}",
        summary="One build",
        plane=Plane.CONTROL,
        permission="build:read",
        answer=Build,
        resource=BY_HANDLER,
        tag="builds",
    ),
    Route(
        op="build.logs",
        method="GET",
        path="/builds/{id}/logs",
        summary="The output, live: `log` events with text, then one `end` event with the build",
        plane=Plane.CONTROL,
        permission="build:read",
        query=Empty,
        kind=Kind.SSE,
        resource=BY_HANDLER,
        tag="builds",
    ),
    Route(
        op="build.cancel",
        method="POST",
        path="/builds/{id}/cancel",
        summary="Stop a build",
        plane=Plane.CONTROL,
        permission="build:manage",
        audit="build.cancel",
        answer=Build,
        resource=BY_HANDLER,
        tag="builds",
    ),
)
