"""Handlers of volumes, and of the volumes that a function mounts."""

from nova.api import volumes as api
from nova.api.functions import MountedVolume
from nova.api.table import Empty, Page, PageQuery
from nova.control.remount import Remounter
from nova.domain.identity import Scope
from nova.domain.tree import MIB
from nova.domain.version import VersionConfig
from nova.domain.volume import Mount
from nova.errors import NovaError, invalid, not_found
from nova.http import paging
from nova.http.handler import Answer, Req, handles
from nova.store.db import Database
from nova.store.volumes import VolumeRecord, VolumeStore


class VolumeHandlers:
    def __init__(self, db: Database, store: VolumeStore, remounter: Remounter) -> None:
        self._db = db
        self._store = store
        self._remounter = remounter

    @handles("volume.create")
    async def create(self, req: Req[api.VolumeCreate, Empty]) -> api.Volume:
        body = req.body
        if not await self._store.insert(
            req.scope,
            body.name,
            size_mb=body.size_mb,
            shared=body.shared,
            description=body.description,
            created_by=req.identity.subject,
        ):
            raise NovaError("already_exists", f"volume {body.name!r} exists already")
        return _view(await self._find(req.scope, body.name))

    @handles("volume.list")
    async def list(self, req: Req[None, PageQuery]) -> Page[api.Volume]:
        after = paging.decode(req.query.cursor, str)
        found = await self._store.page(req.scope, after=str(after[0]) if after else "", limit=req.query.limit + 1)
        shown = found[: req.query.limit]
        more = paging.encode([shown[-1].name]) if len(found) > len(shown) else None
        return Page[api.Volume](items=[_view(record) for record in shown], next_cursor=more)

    @handles("volume.get")
    async def get(self, req: Req[None, Empty]) -> api.Volume:
        return _view(await self._find(req.scope, req.params["volume"]))

    @handles("volume.patch")
    async def patch(self, req: Req[api.VolumeChange, Empty]) -> api.Volume:
        name, body = req.params["volume"], req.body
        async with self._db.transaction() as conn:
            found = await self._store.lock(conn, req.scope, name)
            if found is None:
                raise not_found("volume", name)
            volume_id, size_mb, description = found
            wanted = size_mb if body.size_mb is None else body.size_mb
            if wanted < size_mb:
                raise invalid("size_mb", f"a volume only grows, and this one has {size_mb}")
            described = description if body.description is None else body.description
            await self._store.update(conn, volume_id, size_mb=wanted, description=described)
        return _view(await self._find(req.scope, name))

    @handles("volume.delete")
    async def delete(self, req: Req[None, Empty]) -> None:
        if not await self._store.delete(req.scope, req.params["volume"]):
            raise not_found("volume", req.params["volume"])

    # -- of a function -------------------------------------------------------------------------------------------

    @handles("function.mounts")
    async def mounted(self, req: Req[None, Empty]) -> Answer:
        return await self._remounter.shown(req.scope, req.params["name"], _function_view)

    @handles("function.set_mounts")
    async def mount(self, req: Req[api.FunctionMountsChange, Empty]) -> Answer:
        async with self._remounter.changing(req, req.body.deploy) as change:
            found: list[Mount] = []
            for number, wanted in enumerate(req.body.mounts):
                held = await self._store.hold(change.conn, req.scope, wanted.volume)
                if held is None:
                    raise invalid(f"mounts.{number}.volume", f"there is no volume {wanted.volume!r}")
                volume_id, shared = held
                found.append(Mount(wanted.volume, volume_id, wanted.path, wanted.read_only, shared))
            await change.apply(mounts=tuple(found))
        return change.answer(_function_view)

    async def _find(self, scope: Scope, name: str) -> VolumeRecord:
        record = await self._store.get(scope, name)
        if record is None:
            raise not_found("volume", name)
        return record


def _view(record: VolumeRecord) -> api.Volume:
    return api.Volume(
        name=record.name,
        size_mb=record.size_mb,
        used_mb=round(record.used_bytes / MIB, 2),
        shared=record.shared,
        description=record.description,
        node=record.node,
        mounted_by=list(record.mounted_by),
        created_by=record.created_by,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def _function_view(version: int, config: VersionConfig) -> api.FunctionMounts:
    return api.FunctionMounts(
        version=version,
        mounts=[
            MountedVolume(volume=mount.volume, path=mount.path, read_only=mount.read_only) for mount in config.mounts
        ],
    )
