"""Layers in PostgreSQL. Their files are one blob for each version: the packed tree, named by its digest."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg

from nova.domain.identity import Scope
from nova.domain.layer import LayerRef
from nova.errors import NovaError
from nova.ids import new_id
from nova.store.db import Connection, Database, Queries, Row

_sql = Queries("layers")


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One version of a layer. ``size`` is the bytes of its ``files`` files."""

    name: str
    version: int
    artifact: str
    size: int
    files: int
    runtimes: tuple[str, ...]
    description: str
    created_by: str
    created_at: datetime

    @property
    def reference(self) -> LayerRef:
        return LayerRef(self.name, self.version, self.artifact, self.size, self.runtimes)


@dataclass(frozen=True, slots=True)
class LayerUser:
    """A version of a function that mounts a layer. ``live``: it is the function's live one."""

    function: str
    version: int
    layer_version: int
    live: bool


class LayerStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def publish(
        self,
        conn: Connection,
        scope: Scope,
        name: str,
        *,
        artifact: str,
        size: int,
        files: int,
        runtimes: Sequence[str],
        description: str,
        created_by: str,
    ) -> tuple[int, bool]:
        """The number of the version with this content and these runtimes, and whether it is new.

        Raises ``scope_invalid`` when there is no such namespace.
        """
        where = _of(scope, name)
        try:
            await conn.run(_sql.ensure, **where, id=new_id())
        except psycopg.errors.ForeignKeyViolation:
            raise NovaError("scope_invalid", f"there is no namespace {scope.tenant}/{scope.namespace}") from None
        row = await conn.one(_sql.lock, **where)
        if row is None:  # deleted between the two statements
            raise NovaError("version_conflict", f"layer {name!r} was deleted meanwhile; send it again")
        key = {"id": row["id"], "artifact": artifact, "runtimes": sorted(runtimes)}
        if (same := await conn.one(_sql.same, **key)) is not None:
            return int(same["version"]), False
        number = int(row["next_version"])
        await conn.run(_sql.take_number, id=row["id"])
        more = {"size": size, "files": files, "description": description, "created_by": created_by}
        await conn.run(_sql.insert, **key, **more, version=number)
        return number, True

    async def version(self, scope: Scope, name: str, version: int | None = None) -> LayerRecord | None:
        """One version; None: the newest."""
        row = await self._db.one(_sql.get, **_of(scope, name), version=version)
        return None if row is None else _record(row)

    async def hold(self, conn: Connection, scope: Scope, name: str, version: int | None) -> LayerRecord | None:
        """As :meth:`version`; it cannot be deleted before the transaction ends."""
        row = await conn.one(_sql.hold, **_of(scope, name), version=version)
        return None if row is None else _record(row)

    async def numbers(self, scope: Scope, name: str) -> list[int]:
        """Of all its versions, newest first."""
        return [row["version"] for row in await self._db.fetch(_sql.numbers, **_of(scope, name))]

    async def page(self, scope: Scope, *, after: str, limit: int) -> list[LayerRecord]:
        """The newest version of each layer, by name, behind ``after``."""
        where = {"tenant": scope.tenant, "namespace": scope.namespace}
        return [_record(row) for row in await self._db.fetch(_sql.list, **where, after=after, limit=limit)]

    async def users(self, scope: Scope, name: str, *, after: tuple[str, int], limit: int) -> list[LayerUser]:
        """By function and version, behind ``after``."""
        rows = await self._db.fetch(
            _sql.users, **_of(scope, name), after_name=after[0], after_version=after[1], limit=limit
        )
        return [LayerUser(row["function"], row["version"], row["layer_version"], bool(row["live"])) for row in rows]

    async def delete(self, scope: Scope, name: str, version: int | None = None) -> bool:
        """One version, or the layer with all. False: there is none. Raises ``in_use``."""
        try:
            if version is None:
                return await self._db.run(_sql.delete, **_of(scope, name)) > 0
            return await self._db.run(_sql.delete_version, **_of(scope, name), version=version) > 0
        except psycopg.errors.ForeignKeyViolation:
            users = await self.users(scope, name, after=("", 0), limit=100)
            shown = [
                f"function:{user.function}@{user.version}" for user in users if version in (None, user.layer_version)
            ]
            raise NovaError(
                "in_use", f"layer {name!r} is mounted by versions of functions", extra={"references": shown[:20]}
            ) from None


async def use_layers(conn: Connection, function_id: str, version: int, layers: Sequence[LayerRef]) -> None:
    """Note that a version of a function mounts these, in the transaction that writes it. Raises ``not_found`` when one was
    deleted meanwhile."""
    for layer in layers:
        key = {"function": function_id, "version": version, "name": layer.name, "layer_version": layer.version}
        try:
            noted = await conn.run(_sql.use, **key)
        except psycopg.errors.ForeignKeyViolation:
            noted = 0
        if not noted:
            raise NovaError("not_found", f"layer {layer.name}@{layer.version} was deleted meanwhile")


def _of(scope: Scope, name: str) -> dict[str, str]:
    return {"tenant": scope.tenant, "namespace": scope.namespace, "name": name}


def _record(row: Row) -> LayerRecord:
    return LayerRecord(**{**row, "runtimes": tuple(row["runtimes"])})
