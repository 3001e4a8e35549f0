"""Handlers of code: what a function runs, and new code for it."""

import asyncio
import base64

from starlette.responses import JSONResponse, Response

from nova.api.code import (
    Code,
    CodeDeployed,
    CodeUpdate,
    ContentQuery,
    SourceFiles,
    SourceFileView,
    VersionQuery,
)
from nova.api.functions import FunctionSpec
from nova.api.table import Empty
from nova.config import FunctionSettings, LimitSettings
from nova.control.deploy import Deployer, Draft
from nova.control.sources import dependency_files, given_forms, read_source, require_one_form
from nova.control.uploads import Uploads
from nova.control.views import check_match, etag, function_view, settable_fields
from nova.domain.identity import Scope
from nova.domain.tree import EXECUTABLE, MIB, SourceFile
from nova.errors import not_found
from nova.http import body as bodies
from nova.http.handler import Answer, Req, handles
from nova.payload import encode, too_large
from nova.store.blobs import BlobStore
from nova.store.functions import FunctionRecord, FunctionStore
from nova.store.versions import FileRecord, VersionRecord, VersionStore


class CodeHandlers:
    """Read the code of any version, deploy new code."""

    def __init__(
        self,
        deployer: Deployer,
        functions: FunctionStore,
        versions: VersionStore,
        blobs: BlobStore,
        uploads: Uploads,
        limits: LimitSettings,
        settings: FunctionSettings,
    ) -> None:
        self._deployer = deployer
        self._functions = functions
        self._versions = versions
        self._blobs = blobs
        self._uploads = uploads
        self._limits = limits
        self._settings = settings

    @handles("code.get")
    async def get(self, req: Req[None, VersionQuery]) -> Code:
        function, version = await self._find(req.scope, req.params["name"], req.query.version)
        code = await self._versions.code(function.id, version.version)
        if code is None:
            raise not_found("version", str(version.version))
        return Code(
            version=version.version,
            source_code=code.source_code,
            entry_point=version.config.entry,
            files_count=len(await self._versions.files(function.id, version.version)),
            source_hash=code.source_hash,
            binary_hash=code.binary_hash,
            compile_status=version.compile_status,
            compile_error=version.compile_error,
            build_id=version.build_id,
        )

    @handles("code.put")
    async def put(self, req: Req[None, Empty]) -> Answer:
        update, archive = await self._uploads.read(req.http, CodeUpdate)
        if archive is not None or given_forms(update) or (update.dependency_files is None and not update.entry_point):
            require_one_form(update, archive=archive is not None)
        name = req.params["name"]
        async with self._deployer.writing() as conn:
            function = await self._functions.lock(conn, req.scope, name)
            head = None if function is None else await self._versions.version(function.id, function.head_version, conn)
            if function is None or head is None:
                raise not_found("function", name)
            check_match(req.if_match, etag(function.etag, function_view(function, head)))
            spec = bodies.parse(FunctionSpec, encode(settable_fields(head.config, function.settings)))
            language = self._deployer.language(spec.runtime, spec)
            tree = archive
            if given_forms(update):
                tree = await asyncio.to_thread(read_source, update, language.inline_path, self._limits, self._settings)
            manifests = None
            if update.dependency_files is not None:
                manifests = dependency_files(language.runtime, update.dependency_files)
            draft = Draft(
                spec.runtime,
                spec,
                tree,
                manifests,
                entry_point=update.entry_point,
                activate=update.deploy != "publish",
                description=update.description or "",
                actor=req.identity.subject,
            )
            function = await self._deployer.deploy(conn, function, head, draft)
            deployed = await self._versions.version(function.id, function.head_version, conn)
            files = await self._versions.files(function.id, function.head_version, conn)
        if deployed is None:
            raise not_found("function", name)
        shown = CodeDeployed(
            version=deployed.version,
            source_hash=deployed.code_hash,
            file_count=len(files),
            entry_point=deployed.config.entry,
            compile_status=deployed.compile_status,
            build_id=deployed.build_id,
        )
        return Answer(shown, 202 if deployed.compile_status in ("pending", "compiling") else 200)

    @handles("code.files")
    async def files(self, req: Req[None, VersionQuery]) -> SourceFiles:
        function, version = await self._find(req.scope, req.params["name"], req.query.version)
        files = await self._versions.files(function.id, version.version)
        return SourceFiles(items=[_file_view(file, version.config.entry) for file in files])

    @handles("code.content")
    async def content(self, req: Req[None, ContentQuery]) -> Response:
        function, version = await self._find(req.scope, req.params["name"], req.query.version)
        if req.query.path is None:
            if version.code_size > self._limits.body_mb * MIB:
                raise too_large(self._limits.body_mb * MIB)
            tree = await self._versions.tree(function.id, version.version)
            return JSONResponse({file.path: _content(file) for file in tree if not file.is_link})
        file = await self._versions.file(function.id, version.version, req.query.path)
        if file is None:
            raise not_found("file", req.query.path)
        data = await self._blobs.get(file.digest)
        return Response(
            data,
            media_type="application/octet-stream",
            headers={"ETag": f'"{file.digest}"', "X-Content-Type-Options": "nosniff"},
        )

    async def _find(self, scope: Scope, name: str, number: int | None) -> tuple[FunctionRecord, VersionRecord]:
        function = await self._functions.lookup(scope, name)
        if function is None:
            raise not_found("function", name)
        version = await self._versions.version(function.id, number or function.head_version)
        if version is None:
            raise not_found("version", str(number))
        return function, version


def _file_view(file: FileRecord, entry: str) -> SourceFileView:
    return SourceFileView(
        path=file.path,
        size=file.size,
        sha256=file.digest.removeprefix("sha256:"),
        executable=file.mode == EXECUTABLE,
        is_entry=file.path == entry,
        link=file.is_link,
    )


def _content(file: SourceFile) -> str | dict[str, str]:
    text = file.text
    return text if text is not None else {"base64": base64.b64encode(file.data).decode()}
