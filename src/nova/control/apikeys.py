"""Handlers of API keys. Nobody gives a key more than they hold, nor touches a key that holds more than they do."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from nova.api.apikeys import (
    ApiKey,
    ApiKeyWithSecret,
    KeyCreate,
    KeyPatch,
    KeyPermission,
    KeyRotate,
    KeySpec,
)
from nova.api.table import Empty, Page, PageQuery
from nova.clock import Clock
from nova.config import RateLimitSettings
from nova.control.configure import merge_patch
from nova.domain.identity import Identity
from nova.errors import NovaError, invalid, not_found
from nova.http import body as bodies
from nova.http import paging
from nova.http.handler import Req, handles
from nova.ids import new_id
from nova.payload import encode
from nova.security import access
from nova.security.identity import KeyRing, new_key, same_key
from nova.security.scope import Directory
from nova.store.apikeys import KeyGrant, KeyRecord, KeySettings, KeyStore
from nova.store.db import Database


class KeyHandlers:
    def __init__(
        self,
        db: Database,
        store: KeyStore,
        ring: KeyRing,
        directory: Directory,
        rates: RateLimitSettings,
        clock: Clock,
    ) -> None:
        self._db = db
        self._store = store
        self._ring = ring
        self._directory = directory
        self._rates = rates
        self._clock = clock

    @handles("apikey.create")
    async def create(self, req: Req[KeyCreate, Empty]) -> ApiKeyWithSecret:
        tenant = req.scope.tenant
        settings = self._checked(req.identity, tenant, req.body)
        text, secret = new_key()
        key_id = new_id()
        async with self._db.transaction() as conn:
            record = await self._store.insert(
                conn, key_id, tenant, req.body.name, secret, settings, req.identity.subject
            )
        if record is None:
            raise NovaError("already_exists", f"API key {req.body.name!r} exists already")
        await self._ring.changed(key_id)
        return ApiKeyWithSecret(key=text, **_fields(record))

    @handles("apikey.list")
    async def list(self, req: Req[Empty, PageQuery]) -> Page[ApiKey]:
        limit = req.query.limit
        start = paging.start(req.query.cursor, uuid_key=True)
        rows = await self._store.page(req.scope.tenant, after=start, limit=limit + 1)
        shown, cursor = paging.cut(rows, limit, lambda record: (record.created_at, record.id))
        return Page(items=[ApiKey(**_fields(record)) for record in shown], next_cursor=cursor)

    @handles("apikey.get")
    async def get(self, req: Req[Empty, Empty]) -> ApiKey:
        record = await self._store.get(req.scope.tenant, req.params["name"])
        if record is None:
            raise not_found("API key", req.params["name"])
        return ApiKey(**_fields(record))

    @handles("apikey.patch")
    async def patch(self, req: Req[KeyPatch, Empty]) -> ApiKey:
        tenant, name = req.scope.tenant, req.params["name"]
        async with self._db.transaction() as conn:
            record = await self._store.lock(conn, tenant, name)
            if record is None:
                raise not_found("API key", name)
            self._check_reach(req.identity, record)
            merged = merge_patch(_spec(record).model_dump(mode="json"), req.raw_body)
            settings = self._checked(req.identity, tenant, bodies.parse(KeySpec, encode(merged)), before=record)
            changed = await self._store.update(conn, tenant, name, settings)
        await self._ring.changed(record.id)
        return ApiKey(**_fields(changed or record))

    @handles("apikey.delete")
    async def delete(self, req: Req[Empty, Empty]) -> None:
        tenant, name = req.scope.tenant, req.params["name"]
        async with self._db.transaction() as conn:
            record = await self._store.lock(conn, tenant, name)
            if record is None:
                raise not_found("API key", name)
            self._check_reach(req.identity, record)
            await self._store.delete(conn, tenant, name)
        await self._ring.changed(record.id)

    @handles("apikey.rotate")
    async def rotate(self, req: Req[KeyRotate, Empty]) -> ApiKeyWithSecret:
        tenant, name = req.scope.tenant, req.params["name"]
        async with self._db.transaction() as conn:
            record = await self._store.lock(conn, tenant, name)
            if record is None:
                raise not_found("API key", name)
            self._check_reach(req.identity, record)
            text, hashed = same_key(record.prefix)
            rotated = await self._store.rotate(conn, tenant, name, hashed, req.body.grace_s)
        await self._ring.changed(record.id)
        return ApiKeyWithSecret(key=text, **_fields(rotated or record))

    def _checked(self, giver: Identity, tenant: str, spec: KeySpec, before: KeyRecord | None = None) -> KeySettings:
        """The settings a key may get from this caller. Raises ``validation_failed`` or ``forbidden``."""
        end = spec.expires_at
        unchanged = before is not None and end == before.settings.expires_at
        if end is not None and end <= self._clock.now() and not unchanged:
            raise invalid("expires_at", "must be in the future")
        if spec.tier not in self._rates.tiers:
            raise invalid("tier", f"one of {', '.join(sorted(self._rates.tiers))}")
        for position, row in enumerate(spec.permissions):
            if row.role == access.PLATFORM_ADMIN and (row.functions or row.effect == "deny"):
                raise invalid(
                    f"permissions.{position}", f"{access.PLATFORM_ADMIN} is for everything and cannot be denied"
                )
        settings = _settings(spec)
        _check_gift(giver, settings.permissions, settings.namespaces)
        usual = {giver.tier, self._directory.tier(tenant), self._rates.default_tier}
        if not giver.platform and spec.tier not in usual and (before is None or spec.tier != before.settings.tier):
            raise NovaError("forbidden", f"you may not give away tier {spec.tier!r}")
        return settings

    def _check_reach(self, caller: Identity, record: KeyRecord) -> None:
        """Changing or rotating a key is holding it: it must not hold more than the caller does."""
        _check_gift(caller, record.settings.permissions, record.settings.namespaces)


def _check_gift(giver: Identity, rows: Iterable[KeyGrant], namespaces: tuple[str, ...]) -> None:
    if giver.platform:
        return
    grants = []
    for row in rows:
        if row.role == access.PLATFORM_ADMIN:
            raise NovaError("forbidden", "only a platform administrator gives platform rights")
        grants.append(access.grant(row.role, row.functions, row.effect))
    if (reason := access.exceeds(giver, grants)) is not None:
        raise NovaError("forbidden", f"a key cannot hold more than you do: {reason}")
    if giver.namespaces and not (namespaces and giver.namespaces.issuperset(namespaces)):
        raise NovaError("forbidden", "a key cannot reach more namespaces than you do")


def _settings(spec: KeySpec) -> KeySettings:
    return KeySettings(
        tier=spec.tier,
        enabled=spec.enabled,
        permissions=tuple(KeyGrant(row.role, tuple(row.functions), row.effect) for row in spec.permissions),
        namespaces=tuple(spec.namespaces),
        ip_allow=tuple(spec.ip_allow),
        description=spec.description,
        expires_at=spec.expires_at,
    )


def _spec(record: KeyRecord) -> KeySpec:
    settings = record.settings
    return KeySpec(
        tier=settings.tier,
        permissions=[
            KeyPermission.model_validate({"role": row.role, "functions": list(row.functions), "effect": row.effect})
            for row in settings.permissions
        ],
        namespaces=list(settings.namespaces),
        expires_at=settings.expires_at,
        ip_allow=list(settings.ip_allow),
        enabled=settings.enabled,
        description=settings.description,
    )


def _fields(record: KeyRecord) -> dict[str, Any]:
    ended: datetime | None = record.previous_until
    return {
        **{name: getattr(spec, name) for spec in [_spec(record)] for name in KeySpec.model_fields},
        "id": record.id,
        "name": record.name,
        "prefix": record.prefix,
        "previous_valid_until": ended,
        "last_used_at": record.last_used_at,
        "created_by": record.created_by,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
    }
