"""Tenants and their namespaces. Every change notifies :attr:`Channel.TENANTS` in its transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from nova.domain.identity import DEFAULT_NAMESPACE
from nova.payload import encode
from nova.store.db import Connection, Database, Queries, Row
from nova.store.listen import Channel

_sql = Queries("tenants")
TenantStatus = Literal["active", "suspended"]


@dataclass(frozen=True, slots=True)
class TenantRecord:
    id: str
    name: str
    status: TenantStatus
    tier: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class NamespaceRecord:
    tenant: str
    name: str
    description: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class TenantState:
    """What every request needs to know of a tenant."""

    status: TenantStatus
    tier: str
    namespaces: frozenset[str]


class TenantStore:
    """Methods that change take the connection of a running transaction, in which they also notify."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def directory(self) -> Mapping[str, TenantState]:
        """Every tenant with its namespaces: what a process keeps in memory."""
        rows = await self._db.fetch(_sql.directory)
        return {row["id"]: TenantState(row["status"], row["tier"], frozenset(row["namespaces"])) for row in rows}

    async def get(self, tenant: str) -> TenantRecord | None:
        row = await self._db.one(_sql.get_tenant, id=tenant)
        return _tenant(row) if row else None

    async def page(
        self, only: Sequence[str] | None, *, after: tuple[datetime, str] | None, limit: int
    ) -> list[TenantRecord]:
        """Tenants (``only`` these, None: all), newest first, after (created_at, id)."""
        at, tenant = after or (None, None)
        rows = await self._db.fetch(_sql.list_tenants, only=only, after_at=at, after_id=tenant, limit=limit)
        return [_tenant(row) for row in rows]

    async def lock(self, conn: Connection, tenant: str) -> TenantRecord | None:
        row = await conn.one(_sql.lock_tenant, id=tenant)
        return _tenant(row) if row else None

    async def insert(
        self, conn: Connection, tenant: str, name: str, status: TenantStatus, tier: str
    ) -> TenantRecord | None:
        """A new tenant with its namespace ``default``; None when the id is taken."""
        row = await conn.one(_sql.insert_tenant, id=tenant, name=name, status=status, tier=tier)
        if row is None:
            return None
        await conn.one(_sql.insert_namespace, tenant=tenant, name=DEFAULT_NAMESPACE, description="")
        await conn.notify(Channel.TENANTS, tenant)
        return _tenant(row)

    async def update(
        self, conn: Connection, tenant: str, name: str, status: TenantStatus, tier: str
    ) -> TenantRecord | None:
        row = await conn.one(_sql.update_tenant, id=tenant, name=name, status=status, tier=tier)
        await conn.notify(Channel.TENANTS, tenant)
        return _tenant(row) if row else None

    async def erase(self, conn: Connection, tenant: str) -> None:
        """Delete a tenant and everything it owns, so that a later tenant of the same id starts empty."""
        await conn.run(_sql.allow_long_erasure)
        for row in await conn.fetch(_sql.erase_functions, id=tenant):
            gone = {"tenant": tenant, "namespace": row["namespace"], "name": row["name"], "generation": 0}
            await conn.notify(Channel.FUNCTIONS, encode(gone).decode())
        for row in await conn.fetch(_sql.erase_keys, id=tenant):
            await conn.notify(Channel.KEYS, str(row["id"]))
        for statement in (_sql.erase_work, _sql.erase_cache, _sql.erase_calls, _sql.delete_tenant):
            await conn.run(statement, id=tenant)
        await conn.notify(Channel.TENANTS, tenant)

    async def namespace(self, tenant: str, name: str) -> NamespaceRecord | None:
        row = await self._db.one(_sql.get_namespace, tenant=tenant, name=name)
        return _namespace(row) if row else None

    async def namespaces(
        self, tenant: str, only: Sequence[str] | None, *, after: tuple[datetime, str] | None, limit: int
    ) -> list[NamespaceRecord]:
        """A tenant's namespaces (``only`` these, None: all), newest first, after (created_at, name)."""
        at, name = after or (None, None)
        rows = await self._db.fetch(
            _sql.list_namespaces, tenant=tenant, only=only, after_at=at, after_name=name, limit=limit
        )
        return [_namespace(row) for row in rows]

    async def lock_namespace(self, conn: Connection, tenant: str, name: str) -> NamespaceRecord | None:
        """The namespace, kept from other writers; nobody can add anything to it meanwhile."""
        row = await conn.one(_sql.lock_namespace, tenant=tenant, name=name)
        return _namespace(row) if row else None

    async def content(self, conn: Connection, tenant: str, name: str) -> list[str]:
        """Some of what is in a namespace, as ``function:NAME``, ``layer:NAME`` and ``volume:NAME``."""
        return [row["item"] for row in await conn.fetch(_sql.namespace_content, tenant=tenant, name=name)]

    async def insert_namespace(
        self, conn: Connection, tenant: str, name: str, description: str
    ) -> NamespaceRecord | None:
        """A new namespace; None when the name is taken."""
        row = await conn.one(_sql.insert_namespace, tenant=tenant, name=name, description=description)
        await conn.notify(Channel.TENANTS, tenant)
        return _namespace(row) if row else None

    async def update_namespace(
        self, conn: Connection, tenant: str, name: str, new_name: str, description: str
    ) -> NamespaceRecord | None:
        """Rename or describe; None when the new name is taken."""
        if new_name != name and await conn.one(_sql.get_namespace, tenant=tenant, name=new_name) is not None:
            return None
        row = await conn.one(
            _sql.update_namespace, tenant=tenant, name=name, new_name=new_name, description=description
        )
        await conn.notify(Channel.TENANTS, tenant)
        return _namespace(row) if row else None

    async def delete_namespace(self, conn: Connection, tenant: str, name: str) -> None:
        await conn.run(_sql.delete_namespace, tenant=tenant, name=name)
        await conn.notify(Channel.TENANTS, tenant)


def _tenant(row: Row) -> TenantRecord:
    return TenantRecord(row["id"], row["name"], row["status"], row["tier"], row["created_at"], row["updated_at"])


def _namespace(row: Row) -> NamespaceRecord:
    return NamespaceRecord(row["tenant_id"], row["name"], row["description"], row["created_at"])
