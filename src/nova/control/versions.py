"""Handlers of versions."""

import asyncio
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nova.api.functions import Function
from nova.api.table import Empty, Page, PageQuery
from nova.api.versions import Diff, FieldChange, FileChange, Publish, Version, VersionFile, VersionSummary
from nova.control.deploy import Deployer
from nova.control.views import config_view, function_view, version_members, version_summary
from nova.domain.identity import Scope
from nova.domain.tree import SourceFile, Tree
from nova.errors import NovaError, not_found
from nova.http import paging
from nova.http.handler import Answer, Req, handles
from nova.store.db import Connection
from nova.store.functions import FunctionRecord, FunctionStore
from nova.store.versions import FileRecord, VersionRecord, VersionStore

MAX_DIFF_BYTES = 128 * 1024
MAX_DIFF_LINES = 4000
"""Of one file on either side; larger ones are only named."""
MAX_DIFF_TOTAL = 4 * 1024 * 1024
"""Of all files that one request compares; those beyond are only named."""
_MAX_VERSION = 2**31 - 1
_RETRY_S = 1


class VersionHandlers:
    """List, publish, compare, activate and delete versions."""

    def __init__(self, deployer: Deployer, functions: FunctionStore, versions: VersionStore) -> None:
        self._deployer = deployer
        self._functions = functions
        self._versions = versions

    @handles("version.list")
    async def list(self, req: Req[None, PageQuery]) -> Page[VersionSummary]:
        function = await self._function(req.scope, req.params["name"])
        after = paging.decode(req.query.cursor, int)
        before = min(int(after[0]), _MAX_VERSION) if after else None
        found = await self._versions.page(function.id, before=before, limit=req.query.limit + 1)
        shown = found[: req.query.limit]
        more = paging.encode([shown[-1].version]) if len(found) > len(shown) else None
        return Page[VersionSummary](items=[version_summary(function, v) for v in shown], next_cursor=more)

    @handles("version.get")
    async def get(self, req: Req[None, Empty]) -> Version:
        function = await self._function(req.scope, req.params["name"])
        return await self._view(function, await self._version(function, req.params["version"]))

    @handles("version.publish")
    async def publish(self, req: Req[Publish, Empty]) -> Answer:
        name = req.params["name"]
        async with self._deployer.writing() as conn:
            before = await self._locked(conn, req.scope, name)
            head = await self._version(before, str(before.head_version), conn)
            function = await self._deployer.publish(
                conn, before, head, description=req.body.description or "", actor=req.identity.subject
            )
            version = await self._version(function, str(function.head_version), conn)
            view = await self._view(function, version, conn)
        return Answer(view, 201 if version.version != head.version else 200)

    @handles("version.delete")
    async def delete(self, req: Req[None, Empty]) -> None:
        async with self._deployer.writing() as conn:
            function = await self._locked(conn, req.scope, req.params["name"])
            version = await self._version(function, req.params["version"], conn)
            if references := _references(function, version.version):
                raise NovaError(
                    "in_use",
                    f"version {version.version} is used by {', '.join(references)}",
                    extra={"references": references},
                )
            await self._deployer.drop(conn, function, version)

    @handles("version.activate")
    async def activate(self, req: Req[None, Empty]) -> Function:
        async with self._deployer.writing() as conn:
            function = await self._locked(conn, req.scope, req.params["name"])
            version = await self._version(function, req.params["version"], conn)
            require_built(version)
            function = await self._deployer.activate(conn, function, version)
        return function_view(function, version)

    @handles("version.diff")
    async def diff(self, req: Req[None, Empty]) -> Diff:
        function = await self._function(req.scope, req.params["name"])
        one = await self._version(function, req.params["version"])
        other = await self._version(function, req.params["other"])
        old, new = [config_view(version.config).model_dump(mode="json") for version in (one, other)]
        before = {file.path: file for file in await self._versions.files(function.id, one.version)}
        after = {file.path: file for file in await self._versions.files(function.id, other.version)}
        changed = [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
        left, right = await self._comparable(before, changed), await self._comparable(after, changed)
        files = await asyncio.to_thread(
            lambda: [_file_change(path, before.get(path), after.get(path), left, right) for path in changed]
        )
        return Diff(changes=list(_field_changes(old, new)), files=files)

    async def _comparable(self, files: Mapping[str, FileRecord], paths: Iterable[str]) -> Tree:
        """Those of the files that are small enough to be compared line by line."""
        chosen, total = [], 0
        for path in paths:
            file = files.get(path)
            if file is None or file.is_link or file.size > MAX_DIFF_BYTES or total + file.size > MAX_DIFF_TOTAL:
                continue
            total += file.size
            chosen.append(file)
        return await self._versions.load(chosen)

    async def _function(self, scope: Scope, name: str) -> FunctionRecord:
        function = await self._functions.lookup(scope, name)
        if function is None:
            raise not_found("function", name)
        return function

    async def _locked(self, conn: Connection, scope: Scope, name: str) -> FunctionRecord:
        function = await self._functions.lock(conn, scope, name)
        if function is None:
            raise not_found("function", name)
        return function

    async def _version(self, function: FunctionRecord, number: str, conn: Connection | None = None) -> VersionRecord:
        """By the number in a path; what is not a number does not exist."""
        version = None
        if number.isascii() and number.isdigit() and len(number) <= 10 and int(number) <= _MAX_VERSION:
            version = await self._versions.version(function.id, int(number), conn)
        if version is None:
            raise not_found("version", number)
        return version

    async def _view(self, function: FunctionRecord, version: VersionRecord, conn: Connection | None = None) -> Version:
        files = await self._versions.files(function.id, version.version, conn)
        return Version(
            **version_members(function, version),
            artifact=version.artifact,
            config=config_view(version.config),
            files=[
                VersionFile(path=file.path, sha256=file.digest.removeprefix("sha256:"), size=file.size)
                for file in files
            ],
        )


def _references(function: FunctionRecord, version: int) -> list[str]:
    """Who would miss a version."""
    users = [f"alias:{alias.name}" for alias in function.aliases.values() if version in alias.versions]
    if function.rollout is not None and version in (function.rollout.baseline, function.rollout.target):
        users.append("rollout")
    if function.shadow is not None and function.shadow.target == str(version):
        users.append("shadow")
    if function.live_version == version:
        users.insert(0, "live")
    elif function.live_version is None and function.head_version == version:
        users.insert(0, "deploy")
    return users


def require_built(version: VersionRecord) -> None:
    """Raises ``build_failed`` or ``build_pending`` for a version that cannot run yet."""
    if version.built:
        return
    if version.compile_status == "failed":
        raise NovaError(
            "build_failed",
            f"version {version.version} has no build that succeeded",
            extra={"build_id": version.build_id, "compile_error": version.compile_error},
        )
    raise NovaError("build_pending", f"version {version.version} is still being built", retry_after_s=_RETRY_S)


def _field_changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[FieldChange]:
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _field_changes(before, after, f"{prefix}{name}.")
        elif before != after:
            yield FieldChange(field=f"{prefix}{name}", from_=before, to=after)


def _file_change(path: str, before: FileRecord | None, after: FileRecord | None, left: Tree, right: Tree) -> FileChange:
    diff = None
    if all(record is None or record.path in tree for record, tree in ((before, left), (after, right))):
        diff = _unified(path, left.get(path), right.get(path))
    if before is None:
        return FileChange(path=path, change="added", unified_diff=diff)
    return FileChange(path=path, change="removed" if after is None else "modified", unified_diff=diff)


def _unified(path: str, before: SourceFile | None, after: SourceFile | None) -> str | None:
    old, new = before.text if before else "", after.text if after else ""
    if old is None or new is None or max(old.count("\n"), new.count("\n")) > MAX_DIFF_LINES:
        return None
    lines = difflib.unified_diff(
        old.splitlines(keepends=True),
        new.splitlines(keepends=True),
        f"a/{path}" if before else "/dev/null",
        f"b/{path}" if after else "/dev/null",
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
