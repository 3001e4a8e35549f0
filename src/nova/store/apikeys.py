"""API keys in PostgreSQL: the SHA-256 of a key, what it may do, and since when nobody used it.

Every change notifies :attr:`Channel.KEYS` with the key's id in its transaction; a process that caches keys reads that row again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg.types.json import Jsonb
from pydantic import TypeAdapter

from nova.store.db import Connection, Database, Queries, Row
from nova.store.listen import Channel

_sql = Queries("apikeys")


@dataclass(frozen=True, slots=True)
class KeyGrant:
    """A role on some functions (names or globs; empty = all), given or taken."""

    role: str
    functions: tuple[str, ...] = ()
    effect: Literal["allow", "deny"] = "allow"


@dataclass(frozen=True, slots=True)
class KeySettings:
    """What may be changed on a key."""

    tier: str
    enabled: bool
    permissions: tuple[KeyGrant, ...]
    namespaces: tuple[str, ...]
    ip_allow: tuple[str, ...]
    description: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key. ``previous_hash`` is still good until ``previous_until``."""

    id: str
    tenant: str
    name: str
    prefix: str
    key_hash: bytes
    previous_hash: bytes | None
    previous_until: datetime | None
    settings: KeySettings
    created_by: str
    created_at: datetime
    updated_at: datetime
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class KeySecret:
    """What is stored of a key's text: its public beginning ``nk_<id>`` and its SHA-256."""

    prefix: str
    hash: bytes


_grants: TypeAdapter[tuple[KeyGrant, ...]] = TypeAdapter(tuple[KeyGrant, ...])


class KeyStore:
    """Methods that change take the connection of a running transaction, in which they also notify."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, tenant: str, name: str) -> KeyRecord | None:
        row = await self._db.one(_sql.get_key, tenant=tenant, name=name)
        return _record(row) if row else None

    async def by_id(self, key_id: str) -> KeyRecord | None:
        row = await self._db.one(_sql.key_by_id, id=key_id)
        return _record(row) if row else None

    async def all(self) -> list[KeyRecord]:
        """Every key of every tenant: what a process keeps in memory."""
        return [_record(row) for row in await self._db.fetch(_sql.all_keys)]

    async def page(self, tenant: str, *, after: tuple[datetime, str] | None, limit: int) -> list[KeyRecord]:
        """A tenant's keys, newest first, after (created_at, id)."""
        at, key_id = after or (None, None)
        rows = await self._db.fetch(_sql.list_keys, tenant=tenant, after_at=at, after_id=key_id, limit=limit)
        return [_record(row) for row in rows]

    async def lock(self, conn: Connection, tenant: str, name: str) -> KeyRecord | None:
        """The key, kept from other writers until the transaction ends."""
        row = await conn.one(_sql.lock_key, tenant=tenant, name=name)
        return _record(row) if row else None

    async def insert(
        self,
        conn: Connection,
        key_id: str,
        tenant: str,
        name: str,
        secret: KeySecret,
        settings: KeySettings,
        created_by: str,
    ) -> KeyRecord | None:
        """A new key; None when the name is taken."""
        row = await conn.one(
            _sql.insert_key,
            id=key_id,
            tenant=tenant,
            name=name,
            key_hash=secret.hash,
            prefix=secret.prefix,
            created_by=created_by,
            **_columns(settings),
        )
        return await _changed(conn, row)

    async def update(self, conn: Connection, tenant: str, name: str, settings: KeySettings) -> KeyRecord | None:
        return await _changed(conn, await conn.one(_sql.update_key, tenant=tenant, name=name, **_columns(settings)))

    async def rotate(self, conn: Connection, tenant: str, name: str, key_hash: bytes, grace_s: int) -> KeyRecord | None:
        """Replace the secret; the one before stays good for ``grace_s`` seconds. The prefix stays."""
        row = await conn.one(_sql.rotate_key, tenant=tenant, name=name, key_hash=key_hash, grace_s=grace_s)
        return await _changed(conn, row)

    async def delete(self, conn: Connection, tenant: str, name: str) -> str | None:
        """The id of the key that is gone; None when there was none."""
        row = await conn.one(_sql.delete_key, tenant=tenant, name=name)
        if row is None:
            return None
        await conn.notify(Channel.KEYS, str(row["id"]))
        return str(row["id"])

    async def touch(self, used: Mapping[str, datetime]) -> None:
        """Record when keys were last used."""
        async with self._db.connection() as conn:
            await conn.run_many(_sql.touch_key, [{"id": key_id, "at": at} for key_id, at in used.items()])


async def _changed(conn: Connection, row: Row | None) -> KeyRecord | None:
    if row is None:
        return None
    await conn.notify(Channel.KEYS, str(row["id"]))
    return _record(row)


def _columns(settings: KeySettings) -> Row:
    return {
        "tier": settings.tier,
        "enabled": settings.enabled,
        "permissions": Jsonb(_grants.dump_python(settings.permissions, mode="json")),
        "namespaces": list(settings.namespaces),
        "ip_allow": list(settings.ip_allow),
        "description": settings.description,
        "expires_at": settings.expires_at,
    }


def _record(row: Row) -> KeyRecord:
    return KeyRecord(
        id=str(row["id"]),
        tenant=row["tenant_id"],
        name=row["name"],
        prefix=row["prefix"],
        key_hash=bytes(row["key_hash"]),
        previous_hash=None if row["previous_hash"] is None else bytes(row["previous_hash"]),
        previous_until=row["previous_until"],
        settings=KeySettings(
            tier=row["tier"],
            enabled=row["enabled"],
            permissions=_grants.validate_python(row["permissions"]),
            namespaces=tuple(row["namespaces"]),
            ip_allow=tuple(row["ip_allow"]),
            description=row["description"],
            expires_at=row["expires_at"],
        ),
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        last_used_at=row["last_used_at"],
    )
