"""Handlers of functions."""

import asyncio
from collections.abc import Mapping
from typing import Any

from nova.api.functions import (
    DeleteQuery,
    DryRun,
    Function,
    FunctionCreate,
    FunctionPatch,
    FunctionQuery,
    FunctionSpec,
    Source,
)
from nova.api.table import Empty, Page
from nova.config import FunctionSettings, LimitSettings
from nova.control.configure import merge_patch
from nova.control.deploy import Deployer, Draft
from nova.control.sources import dependency_files, given_forms, read_source, require_one_form
from nova.control.uploads import Uploads
from nova.control.views import check_match, etag, function_view, settable_fields
from nova.domain.identity import Scope
from nova.domain.names import is_name
from nova.domain.tree import Tree
from nova.errors import NovaError, invalid, not_found
from nova.http import body as bodies
from nova.http import paging
from nova.http.handler import Answer, Req, handles
from nova.payload import encode
from nova.security.access import require
from nova.store import asyncs
from nova.store.db import Connection
from nova.store.functions import NO_SUCH_FUNCTION, FunctionFilter, FunctionRecord, FunctionStore, announce
from nova.store.references import References
from nova.store.versions import VersionRecord, VersionStore

_NOT_SETTINGS = frozenset({*Source.model_fields, "deploy"})
"""Members of a patch that are not merged into the settings."""
_GOES_WITH_IT = {"subscription": "event:manage", "trigger": "trigger:manage"}
"""What a cascade deletes, and the right it takes."""


class FunctionHandlers:
    """Create, read, change and delete functions."""

    def __init__(
        self,
        deployer: Deployer,
        functions: FunctionStore,
        versions: VersionStore,
        uploads: Uploads,
        references: References,
        limits: LimitSettings,
        settings: FunctionSettings,
    ) -> None:
        self._uploads = uploads
        self._deployer = deployer
        self._functions = functions
        self._versions = versions
        self._references = references
        self._limits = limits
        self._settings = settings

    @handles("function.create")
    async def create(self, req: Req[FunctionCreate, DryRun]) -> Answer:
        draft = await self._whole(req.body, None, req.identity.subject)
        async with self._deployer.writing(dry_run=req.dry_run) as conn:
            function = await self._deployer.create(conn, req.scope, req.body.name, draft)
            if function is None:
                raise NovaError("already_exists", f"function {req.body.name!r} exists already")
            head = await self._head(function, conn)
        return _answer(function, head, status=200 if req.dry_run else 201)

    @handles("function.list")
    async def list(self, req: Req[None, FunctionQuery]) -> Page[Function]:
        query = req.query
        tag, is_pair, value = (query.tag or "").partition("=")
        wanted = FunctionFilter(
            q=query.q,
            runtime=query.runtime,
            mode=query.mode,
            backend=query.backend,
            compile_status=query.compile_status,
            tag=tag or None,
            tag_value=value if is_pair else None,
        )
        found = await self._functions.page(req.scope, wanted, after=paging.below(query.cursor), limit=query.limit + 1)
        shown = found[: query.limit]
        more = paging.encode([shown[-1][0].id]) if len(found) > len(shown) else None
        return Page[Function](items=[function_view(*pair) for pair in shown], next_cursor=more)

    @handles("function.get")
    async def get(self, req: Req[None, Empty]) -> Answer:
        function = await self._functions.lookup(req.scope, req.params["name"])
        if function is None:
            raise not_found("function", req.params["name"])
        return _answer(function, await self._head(function))

    @handles("function.patch")
    async def patch(self, req: Req[FunctionPatch, DryRun]) -> Answer:
        patch: Mapping[str, Any] = req.raw_body
        if given_forms(req.body):
            require_one_form(req.body)
        async with self._deployer.writing(dry_run=req.dry_run) as conn:
            function, head = await self._locked(conn, req.scope, req.params["name"], req.if_match)
            settings = {name: value for name, value in patch.items() if name not in _NOT_SETTINGS}
            merged = merge_patch(settable_fields(head.config, function.settings), settings)
            spec = bodies.parse(FunctionSpec, encode(merged))
            language = self._deployer.language(spec.runtime, spec)
            tree = await self._tree(req.body, language.inline_path) if given_forms(req.body) else None
            manifests = None
            if "dependency_files" in patch:
                manifests = dependency_files(language.runtime, req.body.dependency_files or {})
            draft = Draft(
                spec.runtime,
                spec,
                tree,
                manifests,
                activate=req.body.deploy != "publish",
                actor=req.identity.subject,
            )
            function = await self._deployer.deploy(conn, function, head, draft)
            head = await self._head(function, conn)
        return _answer(function, head)

    @handles("function.put")
    async def put(self, req: Req[None, DryRun]) -> Answer:
        name = req.params["name"]
        if not is_name(name):
            raise invalid("name", "letters, digits, _ and -, at most 64")
        spec, archive = await self._uploads.read(req.http, FunctionSpec)
        draft = await self._whole(spec, archive, req.identity.subject)
        async with self._deployer.writing(dry_run=req.dry_run) as conn:
            function = await self._functions.lock(conn, req.scope, name)
            created = None
            if function is None:
                require(req.identity, "function:create", name)
                check_match(req.if_match, None)
                created = await self._deployer.create(conn, req.scope, name, draft)
            if created is not None:
                function = created
            else:
                existing, head = await self._locked(conn, req.scope, name, req.if_match)
                function = await self._deployer.deploy(conn, existing, head, draft)
            head = await self._head(function, conn)
        if created is None or req.dry_run:
            return _answer(function, head)
        return _answer(function, head, status=201, Location=f"/functions/{name}")

    @handles("function.delete")
    async def delete(self, req: Req[None, DeleteQuery]) -> None:
        async with self._deployer.writing() as conn:
            function, _ = await self._locked(conn, req.scope, req.params["name"], req.if_match)
            found = await self._references.of_function(conn, req.scope, function.name)
            going = [r for r in found if r.kind in _GOES_WITH_IT] if req.query.cascade else []
            if staying := [r for r in found if r not in going]:
                raise NovaError(
                    "in_use",
                    f"function {function.name!r} is named by {', '.join(f'{r.kind} {r.name!r}' for r in staying[:5])}",
                    extra={"references": [r.path for r in staying]},
                )
            for right in sorted({_GOES_WITH_IT[r.kind] for r in going}):
                require(req.identity, right, None)
            await self._references.delete(conn, req.scope, going)
            await asyncs.delete_of_function(conn, req.scope, function.name, function.id)
            await self._functions.delete(conn, function.id)
            await announce(conn, req.scope, function.name, NO_SUCH_FUNCTION)

    async def _whole(self, spec: FunctionSpec, archive: Tree | None, actor: str) -> Draft:
        """A draft of a request that says everything."""
        require_one_form(spec, archive=archive is not None)
        language = self._deployer.language(spec.runtime, spec)
        manifests = dependency_files(language.runtime, spec.dependency_files or {})
        tree = archive if archive is not None else await self._tree(spec, language.inline_path)
        return Draft(spec.runtime, spec, tree, manifests, actor=actor)

    async def _tree(self, source: Source, inline_path: str) -> Tree:
        return await asyncio.to_thread(read_source, source, inline_path, self._limits, self._settings)

    async def _locked(
        self, conn: Connection, scope: Scope, name: str, if_match: str | None
    ) -> tuple[FunctionRecord, VersionRecord]:
        """The function, kept from other writers, in the state that the caller expects."""
        function = await self._functions.lock(conn, scope, name)
        if function is None:
            raise not_found("function", name)
        head = await self._head(function, conn)
        check_match(if_match, etag(function.etag, function_view(function, head)))
        return function, head

    async def _head(self, function: FunctionRecord, conn: Connection | None = None) -> VersionRecord:
        head = await self._versions.version(function.id, function.head_version, conn)
        if head is None:
            raise not_found("function", function.name)
        return head


def _answer(function: FunctionRecord, head: VersionRecord, *, status: int | None = None, **headers: str) -> Answer:
    view = function_view(function, head)
    return Answer(view, status, {"ETag": f'"{etag(function.etag, view)}"', **headers})
