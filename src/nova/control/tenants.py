"""Handlers of tenants and namespaces. A tenant that is not the caller's does not exist for them."""

from nova.api.table import Empty, Page, PageQuery
from nova.api.tenants import (
    Namespace,
    NamespaceCreate,
    NamespacePatch,
    Tenant,
    TenantCreate,
    TenantPatch,
)
from nova.config import RateLimitSettings
from nova.domain.identity import DEFAULT_NAMESPACE, DEFAULT_TENANT, Identity
from nova.errors import NovaError, invalid, not_found
from nova.http import paging
from nova.http.handler import Answer, Req, handles
from nova.security.scope import Directory
from nova.store.db import Connection, Database
from nova.store.tenants import NamespaceRecord, TenantRecord, TenantStore


class TenantHandlers:
    def __init__(self, db: Database, store: TenantStore, directory: Directory, rates: RateLimitSettings) -> None:
        self._db = db
        self._store = store
        self._directory = directory
        self._rates = rates

    @handles("tenant.create")
    async def create(self, req: Req[TenantCreate, Empty]) -> Answer:
        body = req.body
        self._check_tier(body.tier)
        async with self._db.transaction() as conn:
            record = await self._store.insert(conn, body.id, body.name or body.id, body.status, body.tier)
        if record is None:
            raise NovaError("already_exists", f"tenant {body.id!r} exists already")
        await self._directory.changed(body.id)
        return Answer(_tenant(record), headers={"Location": f"/tenants/{body.id}"})

    @handles("tenant.list")
    async def list(self, req: Req[Empty, PageQuery]) -> Page[Tenant]:
        limit = req.query.limit
        only = sorted(req.identity.tenants) or None
        rows = await self._store.page(only, after=paging.start(req.query.cursor), limit=limit + 1)
        shown, cursor = paging.cut(rows, limit, lambda record: (record.created_at, record.id))
        return Page(items=[_tenant(record) for record in shown], next_cursor=cursor)

    @handles("tenant.get")
    async def get(self, req: Req[Empty, Empty]) -> Tenant:
        return _tenant(await self._own(req.identity, req.params["t"]))

    @handles("tenant.patch")
    async def patch(self, req: Req[TenantPatch, Empty]) -> Tenant:
        tenant, sent = req.params["t"], req.body.model_fields_set
        async with self._db.transaction() as conn:
            record = await self._locked(conn, tenant)
            name = (req.body.name or tenant) if "name" in sent else record.name
            status = (req.body.status or "active") if "status" in sent else record.status
            tier = (req.body.tier or "standard") if "tier" in sent else record.tier
            self._check_tier(tier)
            changed = await self._store.update(conn, tenant, name, status, tier)
        await self._directory.changed(tenant)
        return _tenant(changed or record)

    @handles("tenant.delete")
    async def delete(self, req: Req[Empty, Empty]) -> None:
        tenant = req.params["t"]
        if tenant == DEFAULT_TENANT:
            raise NovaError("invalid_state", "the default tenant stays")
        async with self._db.transaction() as conn:
            await self._locked(conn, tenant)
            await self._store.erase(conn, tenant)
        await self._directory.changed(tenant)

    @handles("namespace.create")
    async def create_namespace(self, req: Req[NamespaceCreate, Empty]) -> Namespace:
        tenant, body = req.params["t"], req.body
        await self._own(req.identity, tenant)
        _check_whole_tenant(req.identity)
        async with self._db.transaction() as conn:
            await self._locked(conn, tenant)
            record = await self._store.insert_namespace(conn, tenant, body.name, body.description)
        if record is None:
            raise NovaError("already_exists", f"namespace {body.name!r} exists already")
        await self._directory.changed(tenant)
        return _namespace(record)

    @handles("namespace.list")
    async def list_namespaces(self, req: Req[Empty, PageQuery]) -> Page[Namespace]:
        tenant = (await self._own(req.identity, req.params["t"])).id
        limit = req.query.limit
        only = sorted(req.identity.namespaces) or None
        rows = await self._store.namespaces(tenant, only, after=paging.start(req.query.cursor), limit=limit + 1)
        shown, cursor = paging.cut(rows, limit, lambda record: (record.created_at, record.name))
        return Page(items=[_namespace(record) for record in shown], next_cursor=cursor)

    @handles("namespace.get")
    async def get_namespace(self, req: Req[Empty, Empty]) -> Namespace:
        tenant, name = (await self._own(req.identity, req.params["t"])).id, req.params["ns"]
        record = await self._store.namespace(tenant, name)
        if record is None or (req.identity.namespaces and name not in req.identity.namespaces):
            raise not_found("namespace", name)
        return _namespace(record)

    @handles("namespace.patch")
    async def patch_namespace(self, req: Req[NamespacePatch, Empty]) -> Namespace:
        tenant, name, body = req.params["t"], req.params["ns"], req.body
        await self._own(req.identity, tenant)
        _check_whole_tenant(req.identity)
        if "name" in body.model_fields_set and body.name is None:
            raise invalid("name", "a namespace needs one")
        async with self._db.transaction() as conn:
            record = await self._locked_namespace(conn, tenant, name)
            new_name = body.name or name
            if new_name != name:
                await self._check_free(conn, tenant, name)
            description = (body.description or "") if "description" in body.model_fields_set else record.description
            changed = await self._store.update_namespace(conn, tenant, name, new_name, description)
        if changed is None:
            raise NovaError("already_exists", f"namespace {new_name!r} exists already")
        await self._directory.changed(tenant)
        return _namespace(changed)

    @handles("namespace.delete")
    async def delete_namespace(self, req: Req[Empty, Empty]) -> None:
        tenant, name = req.params["t"], req.params["ns"]
        await self._own(req.identity, tenant)
        _check_whole_tenant(req.identity)
        async with self._db.transaction() as conn:
            await self._locked_namespace(conn, tenant, name)
            await self._check_free(conn, tenant, name)
            await self._store.delete_namespace(conn, tenant, name)
        await self._directory.changed(tenant)

    async def _own(self, identity: Identity, tenant: str) -> TenantRecord:
        record = await self._store.get(tenant)
        if record is None or (identity.tenants and tenant not in identity.tenants):
            raise not_found("tenant", tenant)
        return record

    async def _locked(self, conn: Connection, tenant: str) -> TenantRecord:
        record = await self._store.lock(conn, tenant)
        if record is None:
            raise not_found("tenant", tenant)
        return record

    async def _locked_namespace(self, conn: Connection, tenant: str, name: str) -> NamespaceRecord:
        await self._locked(conn, tenant)
        record = await self._store.lock_namespace(conn, tenant, name)
        if record is None:
            raise not_found("namespace", name)
        return record

    async def _check_free(self, conn: Connection, tenant: str, name: str) -> None:
        """Raise unless a namespace may go: not ``default``, and nothing in it."""
        if name == DEFAULT_NAMESPACE:
            raise NovaError("invalid_state", "the default namespace stays and keeps its name")
        if references := await self._store.content(conn, tenant, name):
            raise NovaError("in_use", f"namespace {name!r} is not empty", extra={"references": references})

    def _check_tier(self, tier: str) -> None:
        if tier not in self._rates.tiers:
            raise invalid("tier", f"one of {', '.join(sorted(self._rates.tiers))}")


def _check_whole_tenant(identity: Identity) -> None:
    if identity.namespaces:
        raise NovaError("forbidden", "you reach some namespaces only, so you may not change the set of them")


def _tenant(record: TenantRecord) -> Tenant:
    return Tenant(
        id=record.id,
        name=record.name,
        status=record.status,
        tier=record.tier,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def _namespace(record: NamespaceRecord) -> Namespace:
    return Namespace(
        tenant=record.tenant, name=record.name, description=record.description, created_at=record.created_at
    )
