"""Versions: immutable, numbered, whole."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from nova.api.functions import ConfigView, Function
from nova.api.table import Empty, Model, Page, PageQuery, Plane, Route
from nova.domain.function import CompileStatus


class VersionSummary(Model):
    version: int
    description: str
    runtime: str
    handler: str
    code_hash: str
    code_size: int
    compile_status: CompileStatus
    compile_error: str | None
    build_id: str | None
    live: bool
    aliases: list[str]
    created_by: str
    created_at: datetime


class VersionFile(Model):
    path: str
    sha256: str
    size: int


class Version(VersionSummary):
    """One version with its frozen configuration and the digests of its files."""

    artifact: str | None
    config: ConfigView
    files: list[VersionFile]


class Publish(Model):
    description: str | None = Field(None, max_length=4096)


class FieldChange(Model):
    """``field`` is a dotted name; what one side does not have is null there."""

    field: str
    from_: Any = Field(serialization_alias="from")
    to: Any


class FileChange(Model):
    """``unified_diff`` is null for binary and for very large files."""

    path: str
    change: Literal["added", "removed", "modified"]
    unified_diff: str | None


class Diff(Model):
    changes: list[FieldChange]
    files: list[FileChange]


ROUTES = (
    Route(
        op="version.list",
        method="GET",
        path="/functions/{name}/versions",
        summary="Versions, newest first",
        plane=Plane.CONTROL,
        permission="function:read",
        query=PageQuery,
        answer=Page[VersionSummary],
        tag="versions",
    ),
    Route(
        op="version.publish",
        method="POST",
        path="/functions/{name}/versions",
        summary="Freeze the function as it is now; 200 with the version there is when nothing changed",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="version.publish",
        body=Publish,
        answer=Version,
        status=201,
        tag="versions",
    ),
    Route(
        op="version.get",
        method="GET",
        path="/functions/{name}/versions/{version}",
        summary="One version, whole",
        plane=Plane.CONTROL,
        permission="function:read",
        answer=Version,
        tag="versions",
    ),
    Route(
        op="version.delete",
        method="DELETE",
        path="/functions/{name}/versions/{version}",
        summary="Delete a version that nothing uses",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="version.delete",
        query=Empty,
        status=204,
        tag="versions",
    ),
    Route(
        op="version.activate",
        method="POST",
        path="/functions/{name}/versions/{version}/activate",
        summary="Make a version live, with the settings it recorded; also the way back",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="version.activate",
        answer=Function,
        tag="versions",
    ),
    Route(
        op="version.diff",
        method="GET",
        path="/functions/{name}/versions/{version}/diff/{other}",
        summary="What changed from one version to another",
        plane=Plane.CONTROL,
        permission="code:read",
        answer=Diff,
        tag="versions",
    ),
)
