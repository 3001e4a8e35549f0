"""Code: what a function runs, as files."""

from pydantic import Field

from nova.api.functions import Deploy, Source
from nova.api.table import Kind, Model, Plane, Route
from nova.domain.function import CompileStatus


class CodeUpdate(Source):
    """New code. ``entry_point`` is the file to load; unset, it follows from the handler."""

    entry_point: str | None = Field(None, min_length=1, max_length=256)
    deploy: Deploy | None = Field(
        None, description="activate (default): the version goes live once built; publish: it only exists"
    )
    description: str | None = Field(None, max_length=4096, description="of the new version")


class CodeDeployed(Model):
    version: int
    source_hash: str
    file_count: int
    entry_point: str
    compile_status: CompileStatus
    build_id: str | None


class Code(Model):
    """``source_code`` is the entry file; null when it is not text."""

    version: int
    source_code: str | None
    entry_point: str
    files_count: int
    source_hash: str
    binary_hash: str | None
    compile_status: CompileStatus
    compile_error: str | None
    build_id: str | None


class SourceFileView(Model):
    path: str
    size: int
    sha256: str
    executable: bool
    is_entry: bool
    link: bool


class SourceFiles(Model):
    items: list[SourceFileView]


class VersionQuery(Model):
    version: int | None = Field(None, ge=1, le=2**31 - 1, description="default: the version deployed last")


class ContentQuery(VersionQuery):
    path: str | None = Field(None, min_length=1, max_length=256, description="absent: all files as one JSON object")


ROUTES = (
    Route(
        op="code.get",
        method="GET",
        path="/functions/{name}/code",
        summary="The entry file and the state of its build",
        plane=Plane.CONTROL,
        permission="code:read",
        query=VersionQuery,
        answer=Code,
        tag="code",
    ),
    Route(
        op="code.put",
        method="PUT",
        path="/functions/{name}/code",
        summary="Deploy code; JSON, or multipart with `archive` (zip, tar, tar.gz) and `meta` (the JSON without code)",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="code.update",
        body=CodeUpdate,
        answer=CodeDeployed,
        kind=Kind.UPLOAD,
        tag="code",
    ),
    Route(
        op="code.files",
        method="GET",
        path="/functions/{name}/files",
        summary="The source files",
        plane=Plane.CONTROL,
        permission="code:read",
        query=VersionQuery,
        answer=SourceFiles,
        tag="code",
    ),
    Route(
        op="code.content",
        method="GET",
        path="/functions/{name}/files/content",
        summary="The bytes of one file, or all files as a JSON object of text or {base64}",
        plane=Plane.CONTROL,
        permission="code:read",
        query=ContentQuery,
        kind=Kind.ASGI,
        tag="code",
    ),
)
