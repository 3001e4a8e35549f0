"""The one way in which versions come to be: everything a version is, written in one transaction, or nothing."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from nova.api.functions import FunctionFields
from nova.control.configure import (
    Language,
    Place,
    config_of,
    settings_of,
    with_executable_entry,
)
from nova.domain.build import MANIFESTS, plan
from nova.domain.function import CompileStatus
from nova.domain.identity import Scope
from nova.domain.layer import LayerRef, check_layers
from nova.domain.needs import Needs
from nova.domain.tree import SourceFile, Tree, pack
from nova.domain.version import FunctionSettings, VersionConfig
from nova.domain.volume import Mount, check_mounts
from nova.errors import invalid, not_found
from nova.runtimes.registry import Runtimes
from nova.store import builds
from nova.store.blobs import TAR, BlobStore
from nova.store.db import Connection, Database
from nova.store.functions import FunctionRecord, FunctionStore, announce
from nova.store.layers import use_layers
from nova.store.versions import VersionRecord, VersionStore
from nova.store.volumes import use_volumes


class Enforcer(Protocol):
    async def check(self, backend: str, needs: Needs) -> str:
        """The backend that would run this. Raises NovaError ``unsupported`` naming backend and field."""
        ...


@dataclass(frozen=True, slots=True)
class Draft:
    """What a user wants deployed.

    ``tree`` None keeps the code of the version before. ``dependencies`` are manifests that came beside the code; None
    keeps those of before. ``entry_point`` None lets it follow from the handler. ``layers`` and ``mounts`` None: as before.
    """

    runtime: str
    fields: FunctionFields
    tree: Tree | None = None
    dependencies: Sequence[SourceFile] | None = None
    entry_point: str | None = None
    activate: bool = True
    description: str = ""
    actor: str = ""
    layers: tuple[LayerRef, ...] | None = None
    mounts: tuple[Mount, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Change:
    """``tree`` None: the files stay as they are."""

    tree: Tree | None
    code_hash: str
    place: Place
    dependency_files: tuple[str, ...]


class DryRun(Exception):
    """Ends a transaction without writing."""


class Deployer:
    """Writes functions and versions. Its methods run inside the caller's transaction, with the function's row locked."""

    def __init__(
        self,
        db: Database,
        functions: FunctionStore,
        versions: VersionStore,
        blobs: BlobStore,
        runtimes: Runtimes,
        enforcer: Enforcer,
    ) -> None:
        self._db = db
        self.functions = functions
        self.versions = versions
        self._blobs = blobs
        self._runtimes = runtimes
        self._enforcer = enforcer

    @asynccontextmanager
    async def writing(self, *, dry_run: bool = False) -> AsyncIterator[Connection]:
        """A transaction; with ``dry_run`` everything in it happens and is then undone."""
        try:
            async with self._db.transaction() as conn:
                yield conn
                if dry_run:
                    raise DryRun
        except DryRun:
            return

    def language(self, runtime: str, fields: FunctionFields) -> Language:
        return Language.of(self._runtimes, runtime, fields.handler)

    async def create(self, conn: Connection, scope: Scope, name: str, draft: Draft) -> FunctionRecord | None:
        """A function with its first version; None when the name is taken."""
        settings = settings_of(draft.fields)
        function_id = await self.functions.insert(conn, scope, name, settings, draft.actor)
        if function_id is None:
            return None
        function = await self._locked(conn, scope, name)
        return await self.deploy(conn, function, None, draft)

    async def deploy(
        self, conn: Connection, function: FunctionRecord, base: VersionRecord | None, draft: Draft
    ) -> FunctionRecord:
        """Apply a draft to a function whose newest deployed version is ``base``: a new version where one is needed."""
        language = self.language(draft.runtime, draft.fields)
        settings = settings_of(draft.fields)
        change = await self._change(conn, function, base, draft, language)
        config = config_of(
            draft.fields, draft.runtime, language, change.place, change.dependency_files, settings.recorded
        )
        config = _mounting(config, base, draft)
        check_layers(config.layers, language.runtime)
        check_mounts(config.mounts)
        needs = Needs(language.runtime, config.limits, config.network, bool(config.layers), bool(config.mounts))
        await self._enforcer.check(config.backend, needs)
        if base is not None and base.code_hash == change.code_hash and _frozen(base.config) == _frozen(config):
            if settings == function.settings:
                return function
            return await self._save(conn, function, settings, function.head_version, function.live_version)
        tree = await self._base_tree(conn, function, base) if change.tree is None else change.tree
        twin = base if base is not None and base.code_hash == change.code_hash else None
        number, built = await self._write(conn, function, twin, tree, change.code_hash, config, language, draft)
        return await self._save(
            conn, function, settings, number, number if draft.activate and built else function.live_version
        )

    async def publish(
        self, conn: Connection, function: FunctionRecord, head: VersionRecord, *, description: str, actor: str
    ) -> FunctionRecord:
        """Freeze the function as it is now. Makes no version when the head's is the same."""
        config = replace(head.config, recorded=function.settings.recorded)
        if config == head.config:
            return function
        fields = FunctionFields(handler=config.handler if config.handler_given else None)
        draft = Draft(config.runtime, fields, activate=False, description=description, actor=actor)
        tree = await self._base_tree(conn, function, head)
        language = self.language(config.runtime, fields)
        number, _ = await self._write(conn, function, head, tree, head.code_hash, config, language, draft)
        return await self._save(conn, function, function.settings, number, function.live_version)

    async def activate(self, conn: Connection, function: FunctionRecord, version: VersionRecord) -> FunctionRecord:
        """Make a built version live, together with the settings that it recorded."""
        settings = replace(function.settings, recorded=version.config.recorded)
        return await self._save(conn, function, settings, version.version, version.version)

    async def drop(self, conn: Connection, function: FunctionRecord, version: VersionRecord) -> None:
        """Delete a version that neither an alias nor ``live`` names; patches then start from the live one."""
        await self.versions.delete(conn, function.id, version.version)
        head = function.head_version
        if head == version.version and function.live_version is not None:
            head = function.live_version
        await self._save(conn, function, function.settings, head, function.live_version)

    async def _change(
        self, conn: Connection, function: FunctionRecord, base: VersionRecord | None, draft: Draft, language: Language
    ) -> "_Change":
        """What becomes of the code."""
        if base is not None and _keeps_code(base.config, draft):
            old = base.config
            place = Place(old.entry, old.handler, old.entry_kind)
            return _Change(None, base.code_hash, place, old.dependency_files)
        tree, names = await self._assemble(conn, function, base, draft, language)
        entry_point = draft.entry_point
        if entry_point is None and draft.tree is None and base is not None:
            unnamed = language.handler is None and not base.config.handler_given
            entry_point = base.config.entry if unnamed and base.config.entry in tree else None
        place = language.place(tree, entry_point)
        tree = with_executable_entry(tree, place.entry, language)
        return _Change(tree, await asyncio.to_thread(lambda: tree.code_hash), place, tuple(sorted(names)))

    async def _assemble(
        self, conn: Connection, function: FunctionRecord, base: VersionRecord | None, draft: Draft, language: Language
    ) -> tuple[Tree, list[str]]:
        """The new tree with the manifests that came beside the code, and the names of those.

        New code keeps the manifests of before, unless it has its own or the draft says which there are now.
        """
        before = base.config.dependency_files if base else ()
        old = await self._base_tree(conn, function, base) if draft.tree is None or before else Tree([])
        tree = old.without(before) if draft.tree is None else draft.tree
        beside = list(draft.dependencies or ())
        if draft.dependencies is None:
            known = MANIFESTS.get(language.runtime, ())
            beside = [file for file in old if file.path in before and file.path in known and file.path not in tree]
        for file in beside:
            if draft.tree is not None and file.path in draft.tree:
                raise invalid(f"dependency_files.{file.path}", "is among the files of the code too")
        return tree.with_files(*beside), [file.path for file in beside]

    async def _write(
        self,
        conn: Connection,
        function: FunctionRecord,
        twin: VersionRecord | None,
        tree: Tree,
        code_hash: str,
        config: VersionConfig,
        language: Language,
        draft: Draft,
    ) -> tuple[int, bool]:
        """The rows of a new version; its number and whether it can run. ``twin`` is a version with the same files."""
        needs_build = plan(language.runtime, tree.content) is not None
        artifact, status = await self._artifact(conn, twin, tree, config, needs_build)
        number = await self.functions.take_number(conn, function.id)
        entry = tree.get(config.entry)
        await self.versions.insert(
            conn,
            function.id,
            number,
            config=config,
            code_hash=code_hash,
            code_size=tree.size,
            source_code=entry.text if entry and not entry.is_link else None,
            artifact=artifact,
            compile_status=status,
            description=draft.description,
            created_by=draft.actor,
        )
        await use_layers(conn, function.id, number, config.layers)
        await use_volumes(conn, function.id, number, config.mounts)
        if twin is not None:
            await self.versions.copy_files(conn, function.id, base=twin.version, version=number)
        else:
            await self.versions.put_tree(conn, function.id, number, tree)
        if status == "pending":
            await builds.enqueue(conn, function.scope, function_id=function.id, version=number, activate=draft.activate)
        return number, status != "pending"

    async def _artifact(
        self, conn: Connection, twin: VersionRecord | None, tree: Tree, config: VersionConfig, needs_build: bool
    ) -> tuple[str | None, CompileStatus]:
        """What will be mounted, when that is known already."""
        if twin is not None and twin.built and _mounted(twin.config) == _mounted(config):
            return twin.artifact, twin.compile_status
        if needs_build:
            return None, "pending"
        packed = await asyncio.to_thread(pack, tree, config.entry)
        return await self._blobs.put(packed, TAR, conn), "not_required"

    async def _base_tree(self, conn: Connection, function: FunctionRecord, base: VersionRecord | None) -> Tree:
        return Tree([]) if base is None else await self.versions.tree(function.id, base.version, conn)

    async def _save(
        self, conn: Connection, function: FunctionRecord, settings: FunctionSettings, head: int, live: int | None
    ) -> FunctionRecord:
        generation = await self.functions.save(conn, function.id, settings=settings, head=head, live=live)
        await announce(conn, function.scope, function.name, generation)
        return await self._locked(conn, function.scope, function.name)

    async def _locked(self, conn: Connection, scope: Scope, name: str) -> FunctionRecord:
        function = await self.functions.lock(conn, scope, name)
        if function is None:
            raise not_found("function", name)
        return function


def _mounting(config: VersionConfig, base: VersionRecord | None, draft: Draft) -> VersionConfig:
    """With the layers and volumes of the draft, or those of before."""
    before = config if base is None else base.config
    layers = before.layers if draft.layers is None else draft.layers
    mounts = before.mounts if draft.mounts is None else draft.mounts
    return replace(config, layers=layers, mounts=mounts)


def _frozen(config: VersionConfig) -> VersionConfig:
    """The part of a configuration whose change makes a new version."""
    return replace(config, recorded=type(config.recorded)())


def _mounted(config: VersionConfig) -> tuple[str, str]:
    """What of the configuration shapes the tree at ``/code``, beside the files."""
    return config.runtime, config.entry


def _keeps_code(old: VersionConfig, draft: Draft) -> bool:
    """Does a draft leave files and entry point as they are?"""
    if draft.tree is not None or draft.dependencies is not None or draft.entry_point is not None:
        return False
    handler = draft.fields.handler
    same_handler = old.handler == handler if old.handler_given else handler is None
    return old.runtime == draft.runtime and same_handler
