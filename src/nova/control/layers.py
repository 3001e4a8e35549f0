"""Handlers of layers, and of the layers of a function."""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from dataclasses import asdict

from nova.api import layers as api
from nova.api.functions import FileContent
from nova.api.table import Empty, Page, PageQuery
from nova.config import LimitSettings
from nova.control.remount import Remounter
from nova.control.sources import limits_of
from nova.control.uploads import Uploads
from nova.domain.layer import LayerRef, parse_reference
from nova.domain.tree import EXECUTABLE, FILE, SourceFile, Tree, TreeLimits, pack
from nova.domain.version import VersionConfig
from nova.errors import invalid, not_found
from nova.http import paging
from nova.http.handler import Answer, Req, handles
from nova.runtimes.registry import Runtimes
from nova.store.blobs import TAR, BlobStore
from nova.store.db import Database
from nova.store.layers import LayerRecord, LayerStore


class LayerHandlers:
    def __init__(
        self,
        db: Database,
        store: LayerStore,
        blobs: BlobStore,
        runtimes: Runtimes,
        uploads: Uploads,
        limits: LimitSettings,
        remounter: Remounter,
    ) -> None:
        self._db = db
        self._store = store
        self._blobs = blobs
        self._runtimes = runtimes
        self._uploads = uploads
        self._limits = limits
        self._remounter = remounter

    @handles("layer.publish")
    async def publish(self, req: Req[None, Empty]) -> Answer:
        """200 when a version with this content and these runtimes is there."""
        body, archive = await self._uploads.read(req.http, api.LayerPublish)
        if (archive is None) == (body.files is None):
            raise invalid("files", "give the files here or an archive")
        runtimes = sorted({self._runtime(number, name) for number, name in enumerate(body.runtimes)})
        tree = archive
        if tree is None:
            tree = await asyncio.to_thread(_tree, body.files or {}, limits_of(self._limits))
        packed = await asyncio.to_thread(pack, tree, None)
        async with self._db.transaction() as conn:
            number, new = await self._store.publish(
                conn,
                req.scope,
                body.name,
                artifact=await self._blobs.put(packed, TAR, conn),
                size=tree.size,
                files=len(tree),
                runtimes=runtimes,
                description=body.description,
                created_by=req.identity.subject,
            )
        view = _view(await self._find(req, body.name, number))
        return Answer(view, 201 if new else 200, {"Location": f"/layers/{body.name}/versions/{number}"})

    def _runtime(self, number: int, name: str) -> str:
        """A runtime by its plain id: what is mounted does not know of versions."""
        known = [runtime.id for runtime in self._runtimes.list()]
        if name not in known:
            raise invalid(f"runtimes.{number}", f"{name!r} is none of {', '.join(known)}")
        return name

    @handles("layer.list")
    async def list(self, req: Req[None, PageQuery]) -> Page[api.LayerVersion]:
        after = paging.decode(req.query.cursor, str)
        found = await self._store.page(req.scope, after=str(after[0]) if after else "", limit=req.query.limit + 1)
        shown = found[: req.query.limit]
        more = paging.encode([shown[-1].name]) if len(found) > len(shown) else None
        return Page[api.LayerVersion](items=[_view(record) for record in shown], next_cursor=more)

    @handles("layer.get")
    async def get(self, req: Req[None, Empty]) -> api.Layer:
        name = req.params["layer"]
        record = await self._find(req, name, None)
        return api.Layer(**_members(record), versions=await self._store.numbers(req.scope, name))

    @handles("layer.version")
    async def version(self, req: Req[None, Empty]) -> api.LayerVersion:
        return _view(await self._find(req, req.params["layer"], _number(req.params["version"])))

    @handles("layer.functions")
    async def functions(self, req: Req[None, PageQuery]) -> Page[api.LayerUser]:
        name = req.params["layer"]
        await self._find(req, name, None)
        values = paging.decode(req.query.cursor, str, int)
        after = (str(values[0]), min(int(values[1]), 2**31 - 1)) if values else ("", 0)
        found = await self._store.users(req.scope, name, after=after, limit=req.query.limit + 1)
        shown = found[: req.query.limit]
        more = paging.encode([shown[-1].function, shown[-1].version]) if len(found) > len(shown) else None
        return Page[api.LayerUser](items=[api.LayerUser(**asdict(user)) for user in shown], next_cursor=more)

    @handles("layer.delete")
    async def delete(self, req: Req[None, Empty]) -> None:
        if not await self._store.delete(req.scope, req.params["layer"]):
            raise not_found("layer", req.params["layer"])

    @handles("layer.delete_version")
    async def delete_version(self, req: Req[None, Empty]) -> None:
        name, number = req.params["layer"], req.params["version"]
        if not await self._store.delete(req.scope, name, _number(number)):
            raise not_found("layer version", f"{name}@{number}")

    # -- of a function -------------------------------------------------------------------------------------------

    @handles("function.layers")
    async def mounted(self, req: Req[None, Empty]) -> Answer:
        return await self._remounter.shown(req.scope, req.params["name"], _function_view)

    @handles("function.set_layers")
    async def mount(self, req: Req[api.FunctionLayersChange, Empty]) -> Answer:
        wanted = [parse_reference(text, f"layers.{number}") for number, text in enumerate(req.body.layers)]
        async with self._remounter.changing(req, req.body.deploy) as change:
            found: list[LayerRef] = []
            for number, (name, version) in enumerate(wanted):
                record = await self._store.hold(change.conn, req.scope, name, version)
                if record is None:
                    said = name if version is None else f"{name}@{version}"
                    raise invalid(f"layers.{number}", f"there is no layer {said!r}")
                found.append(record.reference)
            await change.apply(layers=tuple(found))
        return change.answer(_function_view)

    async def _find(self, req: Req[None, Empty] | Req[None, PageQuery], name: str, version: int | None) -> LayerRecord:
        record = await self._store.version(req.scope, name, version)
        if record is None:
            raise not_found("layer", name) if version is None else not_found("layer version", f"{name}@{version}")
        return record


def _number(text: str) -> int:
    """The version number in a path; what is none does not exist."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _tree(files: Mapping[str, str | FileContent], bounds: TreeLimits) -> Tree:
    return Tree((_file(path, content) for path, content in files.items()), bounds)


def _file(path: str, content: str | FileContent) -> SourceFile:
    text, executable = (content, False) if isinstance(content, str) else (content.base64, content.executable)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"files.{path}", "is not base64") from None
    return SourceFile(path, EXECUTABLE if executable else FILE, data)


def _members(record: LayerRecord) -> dict[str, object]:
    members = asdict(record)
    digest = members.pop("artifact")
    return {**members, "digest": digest, "runtimes": list(record.runtimes)}


def _view(record: LayerRecord) -> api.LayerVersion:
    return api.LayerVersion.model_validate(_members(record))


def _function_view(version: int, config: VersionConfig) -> api.FunctionLayers:
    return api.FunctionLayers(
        version=version,
        layers=[
            api.MountedLayer(
                name=layer.name,
                version=layer.version,
                digest=layer.artifact,
                size=layer.size,
                runtimes=list(layer.runtimes),
                path=f"/layers/{number}",
            )
            for number, layer in enumerate(config.layers)
        ],
    )
