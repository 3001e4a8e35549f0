"""Volumes in PostgreSQL: what there is, who mounts it, on which node it lies, and who may write to it now."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg

from nova.domain.identity import Scope
from nova.domain.volume import Mount
from nova.errors import NovaError, not_found
from nova.ids import new_id
from nova.store.db import Connection, Database, Queries, Row
from nova.store.platform import secret

_sql = Queries("volumes")


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """``node`` None: no instance has mounted it yet. ``mounted_by``: functions with a version that mounts it."""

    id: str
    name: str
    size_mb: int
    shared: bool
    description: str
    node: str | None
    used_bytes: int
    mounted_by: tuple[str, ...]
    created_by: str
    created_at: datetime
    updated_at: datetime


class VolumeStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def insert(
        self, scope: Scope, name: str, *, size_mb: int, shared: bool, description: str, created_by: str
    ) -> bool:
        """False when the name is taken. Raises ``scope_invalid`` when there is no such namespace."""
        values = {"size_mb": size_mb, "shared": shared, "description": description, "created_by": created_by}
        try:
            return await self._db.run(_sql.insert, **_of(scope, name), **values, id=new_id()) > 0
        except psycopg.errors.ForeignKeyViolation:
            raise NovaError("scope_invalid", f"there is no namespace {scope.tenant}/{scope.namespace}") from None

    async def get(self, scope: Scope, name: str) -> VolumeRecord | None:
        row = await self._db.one(_sql.get, **_of(scope, name))
        return None if row is None else _record(row)

    async def page(self, scope: Scope, *, after: str, limit: int) -> list[VolumeRecord]:
        """By name, behind ``after``."""
        where = {"tenant": scope.tenant, "namespace": scope.namespace}
        return [_record(row) for row in await self._db.fetch(_sql.list, **where, after=after, limit=limit)]

    async def lock(self, conn: Connection, scope: Scope, name: str) -> tuple[str, int, str] | None:
        """Id, size in MiB and description; nobody else changes it before the transaction ends."""
        row = await conn.one(_sql.lock, **_of(scope, name))
        return None if row is None else (row["id"], row["size_mb"], row["description"])

    async def update(self, conn: Connection, volume_id: str, *, size_mb: int, description: str) -> None:
        await conn.run(_sql.update, id=volume_id, size_mb=size_mb, description=description)

    async def hold(self, conn: Connection, scope: Scope, name: str) -> tuple[str, bool] | None:
        """Id and ``shared``; it cannot be deleted before the transaction ends."""
        row = await conn.one(_sql.hold, **_of(scope, name))
        return None if row is None else (row["id"], row["shared"])

    async def delete(self, scope: Scope, name: str) -> bool:
        """False: there is none. Raises ``in_use``."""
        try:
            return await self._db.run(_sql.delete, **_of(scope, name)) > 0
        except psycopg.errors.ForeignKeyViolation:
            found = await self.get(scope, name)
            references = [f"function:{function}" for function in found.mounted_by] if found else []
            raise NovaError(
                "in_use", f"volume {name!r} is mounted by versions of functions", extra={"references": references}
            ) from None


class VolumeHost:
    """What the node where volumes lie says and asks. ``owner`` names this process; no other has that name."""

    def __init__(self, db: Database, node: str, owner: str) -> None:
        self._db = db
        self._node = node
        self._owner = owner

    async def installation(self) -> str:
        """A name for all that use this database; no other database has it."""
        return (await secret(self._db, "installation", os.urandom(8))).hex()

    async def look(self, volume_id: str) -> tuple[str | None, int]:
        """The node where the volume's files are, None while there are none, and its size in MiB. Raises ``not_found``."""
        row = await self._db.one(_sql.look, id=volume_id)
        if row is None:
            raise not_found("volume", volume_id)
        return row["node"], row["size_mb"]

    async def settle(self, volume_id: str) -> str:
        """The node where the volume's files are: this one, if there were none. Raises ``not_found``."""
        row = await self._db.one(_sql.settle, id=volume_id, node=self._node)
        if row is None:
            raise not_found("volume", volume_id)
        return str(row["node"])

    async def take(self, volume_id: str) -> None:
        """Its files are on this node, whatever was said before."""
        await self._db.run(_sql.take, id=volume_id, node=self._node)

    async def tell_use(self, volume_id: str, used_bytes: int) -> None:
        await self._db.run(_sql.tell_use, id=volume_id, used_bytes=used_bytes)

    async def existing(self, volume_ids: Sequence[str]) -> set[str]:
        """Those of them that have not been deleted."""
        return {row["id"] for row in await self._db.fetch(_sql.existing, ids=list(volume_ids))}

    async def acquire(self, volume_id: str, instance_id: str, lease_s: float) -> int | None:
        """The fence of a lease to write; None while another instance has one."""
        row = await self._db.one(_sql.acquire, id=volume_id, instance=instance_id, owner=self._owner, lease_s=lease_s)
        return None if row is None else int(row["fence"])

    async def holder(self, volume_id: str) -> str | None:
        """The instance of this process that writes; None: there is none, or it is another's."""
        row = await self._db.one(_sql.holder, id=volume_id)
        return row["instance_id"] if row is not None and row["owner"] == self._owner else None

    async def renew(self, leases: Collection[tuple[str, int]], lease_s: float) -> set[tuple[str, int]]:
        """Those of the leases (volume id and fence) that still hold, now for ``lease_s`` seconds more."""
        pairs = list(leases)
        values = {"ids": [pair[0] for pair in pairs], "fences": [pair[1] for pair in pairs]}
        return {(row["id"], row["fence"]) for row in await self._db.fetch(_sql.renew, **values, lease_s=lease_s)}

    async def release(self, volume_ids: Sequence[str], instance_id: str) -> None:
        await self._db.run(_sql.release, ids=list(volume_ids), instance=instance_id)

    async def release_all(self) -> None:
        """Whatever a process of this name held."""
        await self._db.run(_sql.release_all, owner=self._owner)


async def use_volumes(conn: Connection, function_id: str, version: int, mounts: Sequence[Mount]) -> None:
    """Note that a version of a function mounts these, in the transaction that writes it. Raises ``not_found`` when one was
    deleted meanwhile."""
    for mount in mounts:
        try:
            await conn.run(_sql.use, function=function_id, version=version, volume=mount.volume_id)
        except psycopg.errors.ForeignKeyViolation:
            raise NovaError("not_found", f"volume {mount.volume!r} was deleted meanwhile") from None


def _of(scope: Scope, name: str) -> dict[str, str]:
    return {"tenant": scope.tenant, "namespace": scope.namespace, "name": name}


def _record(row: Row) -> VolumeRecord:
    return VolumeRecord(**{**row, "mounted_by": tuple(row["mounted_by"])})
