"""Functions in PostgreSQL: what the control plane writes and what the execution plane's catalog reads.

Whoever changes a row tells every process through :func:`announce`, in the transaction of the change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg.errors import ForeignKeyViolation
from psycopg.types.json import Jsonb
from pydantic import TypeAdapter

from nova.domain.alias import Alias
from nova.domain.identity import Scope
from nova.domain.rollout import Routing
from nova.domain.shadow import Shadow
from nova.domain.version import FunctionSettings, UrlMode
from nova.errors import NovaError
from nova.ids import new_id, new_token
from nova.payload import encode
from nova.store import shadows
from nova.store.aliases import alias_of
from nova.store.db import Connection, Database, Queries, Row
from nova.store.listen import Channel
from nova.store.versions import VersionRecord, version_of

_sql = Queries("functions")
_settings: TypeAdapter[FunctionSettings] = TypeAdapter(FunctionSettings)
_routing: TypeAdapter[Routing] = TypeAdapter(Routing)
NO_SUCH_FUNCTION = 0
"""The generation that is announced for a function that is gone."""


@dataclass(frozen=True, slots=True)
class FunctionRecord:
    """One function as it is now.

    ``generation`` grows with every change that a cache must notice. ``live_version`` is None until the first version is
    built. ``head_version`` is the one deployed or activated last: what the function's settings show and a patch changes.
    ``latest_built`` is what ``$LATEST`` runs. ``rollout`` is the one under way, ``shadow`` what calls are copied to; lists
    (:meth:`FunctionStore.page`) know of neither.
    """

    id: str
    scope: Scope
    name: str
    generation: int
    live_version: int | None
    head_version: int
    latest_version: int
    latest_built: int | None
    settings: FunctionSettings
    aliases: Mapping[str, Alias]
    etag: str
    created_by: str
    created_at: datetime
    updated_at: datetime
    rollout: Routing | None = None
    shadow: Shadow | None = None


@dataclass(frozen=True, slots=True)
class FunctionFilter:
    """What a list may ask for; None does not restrict. ``tag`` is a tag's name, ``tag_value`` its value."""

    q: str | None = None
    runtime: str | None = None
    mode: str | None = None
    backend: str | None = None
    compile_status: str | None = None
    tag: str | None = None
    tag_value: str | None = None


class FunctionStore:
    """Every method takes the connection of a running transaction, or one of its own."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def lookup(self, scope: Scope, name: str, conn: Connection | None = None) -> FunctionRecord | None:
        """The function with its aliases, in one round trip."""
        row = await (conn or self._db).one(_sql.lookup, tenant=scope.tenant, namespace=scope.namespace, name=name)
        return None if row is None else _function_of(row)

    async def url_mode(self, scope: Scope, name: str) -> UrlMode | None:
        """How the function's URL answers; None when there is no such function."""
        row = await self._db.one(_sql.url_mode, tenant=scope.tenant, namespace=scope.namespace, name=name)
        return None if row is None else row["mode"]

    async def generations(self, function_ids: Sequence[str]) -> dict[str, int]:
        """The generation of each function that still exists."""
        rows = await self._db.fetch(_sql.generations, ids=list(function_ids))
        return {row["id"]: row["generation"] for row in rows}

    async def page(
        self, scope: Scope, wanted: FunctionFilter, *, after: str | None, limit: int
    ) -> list[tuple[FunctionRecord, VersionRecord]]:
        """Functions with their head versions, newest first, beginning after the id ``after``. Without aliases."""
        rows = await self._db.fetch(
            _sql.list,
            tenant=scope.tenant,
            namespace=scope.namespace,
            after=after,
            limit=limit,
            q=wanted.q,
            runtime=wanted.runtime,
            mode=wanted.mode,
            backend=wanted.backend,
            compile_status=wanted.compile_status,
            tag=wanted.tag,
            tag_value=wanted.tag_value,
        )
        return [(_function_of(row), version_of(row)) for row in rows]

    async def lock(self, conn: Connection, scope: Scope, name: str) -> FunctionRecord | None:
        """The function, kept from other writers until the transaction ends."""
        key = {"tenant": scope.tenant, "namespace": scope.namespace, "name": name}
        if await conn.one(_sql.lock, **key) is None:
            return None
        return await self.lookup(scope, name, conn)

    async def insert(
        self, conn: Connection, scope: Scope, name: str, settings: FunctionSettings, created_by: str
    ) -> str | None:
        """A new function, still without any version; its id, or None when the name is taken.

        Raises ``scope_invalid`` when there is no such namespace (any more).
        """
        function_id = new_id()
        try:
            touched = await conn.run(
                _sql.insert,
                id=function_id,
                tenant=scope.tenant,
                namespace=scope.namespace,
                name=name,
                data=_dump(settings),
                etag=new_etag(),
                created_by=created_by,
            )
        except ForeignKeyViolation:
            where = f"{scope.tenant}/{scope.namespace}"
            raise NovaError("scope_invalid", f"there is no namespace {where!r}") from None
        return function_id if touched else None

    async def take_number(self, conn: Connection, function_id: str) -> int:
        """The next version number; it is never given again."""
        row = await conn.one(_sql.take_number, id=function_id)
        if row is None:
            raise LookupError(function_id)
        return int(row["version"])

    async def save(
        self, conn: Connection, function_id: str, *, settings: FunctionSettings, head: int, live: int | None
    ) -> int:
        """Write settings and pointers; the new generation."""
        row = await conn.one(_sql.save, id=function_id, data=_dump(settings), head=head, live=live, etag=new_etag())
        if row is None:
            raise LookupError(function_id)
        return int(row["generation"])

    async def touch(self, conn: Connection, function_id: str) -> int:
        """Something that belongs to the function changed (an alias); the new generation."""
        row = await conn.one(_sql.touch, id=function_id)
        if row is None:
            raise LookupError(function_id)
        return int(row["generation"])

    async def delete(self, conn: Connection, function_id: str) -> None:
        """The function with its versions, code, files, aliases and builds."""
        await conn.run(_sql.delete, id=function_id)


async def announce(conn: Connection, scope: Scope, name: str, generation: int) -> None:
    """Tell every process, when this transaction commits, that the function changed."""
    change = {"tenant": scope.tenant, "namespace": scope.namespace, "name": name, "generation": generation}
    await conn.notify(Channel.FUNCTIONS, encode(change).decode())


def new_etag() -> str:
    return new_token(9)


def _function_of(row: Row) -> FunctionRecord:
    return FunctionRecord(
        id=row["id"],
        scope=Scope(row["tenant_id"], row["namespace"]),
        name=row["name"],
        generation=row["generation"],
        live_version=row["live_version"],
        head_version=row["head_version"],
        latest_version=row["latest_version"] or 0,
        latest_built=row.get("latest_built"),
        settings=_settings.validate_python(row["data"]),
        aliases={name: alias_of(name, data) for name, data in row.get("aliases", {}).items()},
        etag=row["etag"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        rollout=None if row.get("rollout") is None else _routing.validate_python(row["rollout"]),
        shadow=shadows.active(row.get("shadow")),
    )


def _dump(settings: FunctionSettings) -> Jsonb:
    return Jsonb(_settings.dump_python(settings, mode="json"))
