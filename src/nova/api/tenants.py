"""Tenants and their namespaces."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from nova.api.table import Model, Page, PageQuery, Plane, Route
from nova.domain.names import NAME, SCOPE

ScopeName = Annotated[str, StringConstraints(pattern=SCOPE)]
Status = Literal["active", "suspended"]
Tier = Annotated[str, StringConstraints(pattern=NAME)]


class TenantCreate(Model):
    id: ScopeName
    name: str | None = Field(None, min_length=1, max_length=256, description="for people; default: the id")
    status: Status = Field("active", description="suspended: every request in the tenant is refused")
    tier: Tier = Field("standard", description="one of rate_limit.tiers, for keys of unknown tier")


class TenantPatch(Model):
    """A merge patch: null means the default."""

    name: str | None = Field(None, min_length=1, max_length=256)
    status: Status | None = None
    tier: Tier | None = None


class Tenant(Model):
    id: str
    name: str
    status: Status
    tier: str
    created_at: datetime
    updated_at: datetime


class NamespaceCreate(Model):
    name: ScopeName
    description: str = Field("", max_length=1024)


class NamespacePatch(Model):
    """A merge patch. A namespace is renamed only while it is empty."""

    name: ScopeName | None = None
    description: str | None = Field(None, max_length=1024)


class Namespace(Model):
    tenant: str
    name: str
    description: str
    created_at: datetime


def _route(op: str, method: str, path: str, summary: str, permission: str, **more: Any) -> Route:
    return Route(
        op=op,
        method=method,
        path=path,
        summary=summary,
        plane=Plane.CONTROL,
        permission=permission,
        resource=None,
        scoped=False,
        tag="tenants",
        **more,
    )


_READ, _MANAGE = "tenant:read", "tenant:manage"
_ONE = "/tenants/{t}"
_SPACES = "/tenants/{t}/namespaces"
_SPACE = "/tenants/{t}/namespaces/{ns}"

ROUTES = (
    _route(
        "tenant.create",
        "POST",
        "/tenants",
        "Create a tenant with a namespace called default",
        _MANAGE,
        audit="tenant.create",
        body=TenantCreate,
        answer=Tenant,
        status=201,
        platform=True,
    ),
    _route(
        "tenant.list",
        "GET",
        "/tenants",
        "List the tenants that the caller belongs to",
        _READ,
        query=PageQuery,
        answer=Page[Tenant],
    ),
    _route("tenant.get", "GET", _ONE, "Show a tenant", _READ, answer=Tenant),
    _route(
        "tenant.patch",
        "PATCH",
        _ONE,
        "Rename, suspend or resume a tenant, or change its tier",
        _MANAGE,
        audit="tenant.update",
        body=TenantPatch,
        answer=Tenant,
        platform=True,
    ),
    _route(
        "tenant.delete",
        "DELETE",
        _ONE,
        "Delete a tenant with everything in it",
        _MANAGE,
        audit="tenant.delete",
        status=204,
        platform=True,
    ),
    _route(
        "namespace.create",
        "POST",
        _SPACES,
        "Create a namespace",
        _MANAGE,
        audit="namespace.create",
        body=NamespaceCreate,
        answer=Namespace,
        status=201,
    ),
    _route(
        "namespace.list", "GET", _SPACES, "List a tenant's namespaces", _READ, query=PageQuery, answer=Page[Namespace]
    ),
    _route("namespace.get", "GET", _SPACE, "Show a namespace", _READ, answer=Namespace),
    _route(
        "namespace.patch",
        "PATCH",
        _SPACE,
        "Describe a namespace, or rename it while it is empty",
        _MANAGE,
        audit="namespace.update",
        body=NamespacePatch,
        answer=Namespace,
    ),
    _route(
        "namespace.delete", "DELETE", _SPACE, "Delete an empty namespace", _MANAGE, audit="namespace.delete", status=204
    ),
)
