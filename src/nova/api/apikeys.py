"""API keys: how machines prove who they are."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints

from nova.api.table import Model, Page, PageQuery, Plane, Route
from nova.config import network
from nova.domain.names import NAME, SCOPE

Role = Literal["platform-admin", "admin", "operator", "developer", "invoker", "viewer"]
Name = Annotated[str, StringConstraints(pattern=NAME)]
FunctionPattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_*?-]{1,64}$")]
Namespace = Annotated[str, StringConstraints(pattern=SCOPE)]
MAX_GRACE_S = 7 * 24 * 3600


class KeyPermission(Model):
    """A role on some functions (names or globs; none = all), given or, with ``deny``, taken. A deny beats every allow."""

    role: Role
    functions: list[FunctionPattern] = Field([], max_length=100)
    effect: Literal["allow", "deny"] = "allow"


class KeySpec(Model):
    """What may be changed on a key. A key without permissions may do nothing."""

    tier: Name = Field("standard", description="one of rate_limit.tiers")
    permissions: list[KeyPermission] = Field([], max_length=100)
    namespaces: list[Namespace] = Field([], max_length=100, description="none: every namespace of the tenant")
    expires_at: AwareDatetime | None = None
    ip_allow: list[Annotated[str, AfterValidator(network)]] = Field(
        [], max_length=100, description="addresses or networks the key may be used from; none: anywhere"
    )
    enabled: bool = True
    description: str = Field("", max_length=1024)


class KeyCreate(KeySpec):
    name: Name


class KeyPatch(Model):
    """A merge patch: null means the default."""

    tier: Name | None = None
    permissions: list[KeyPermission] | None = None
    namespaces: list[Namespace] | None = None
    expires_at: AwareDatetime | None = None
    ip_allow: list[str] | None = None
    enabled: bool | None = None
    description: str | None = None


class KeyRotate(Model):
    grace_s: int = Field(0, ge=0, le=MAX_GRACE_S, description="how long the old key stays good")


class ApiKey(KeySpec):
    """A key as it can be shown: never its text."""

    id: str
    name: str
    prefix: str
    previous_valid_until: datetime | None = Field(description="end of the grace of the key before the last rotation")
    last_used_at: datetime | None
    created_by: str
    created_at: datetime
    updated_at: datetime


class ApiKeyWithSecret(ApiKey):
    """``key`` is shown here once and stored nowhere."""

    key: str


_MANAGE = "apikey:manage"

ROUTES = (
    Route(
        op="apikey.create",
        method="POST",
        path="/apikeys",
        summary="Create an API key; the answer is the only place where the key is shown",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="apikey.create",
        body=KeyCreate,
        answer=ApiKeyWithSecret,
        status=201,
        resource=None,
        tag="apikeys",
    ),
    Route(
        op="apikey.list",
        method="GET",
        path="/apikeys",
        summary="List the tenant's API keys",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        query=PageQuery,
        answer=Page[ApiKey],
        resource=None,
        tag="apikeys",
    ),
    Route(
        op="apikey.get",
        method="GET",
        path="/apikeys/{name}",
        summary="Show an API key without its text",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        answer=ApiKey,
        resource=None,
        tag="apikeys",
    ),
    Route(
        op="apikey.patch",
        method="PATCH",
        path="/apikeys/{name}",
        summary="Change what a key may do, from where and until when",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="apikey.update",
        body=KeyPatch,
        answer=ApiKey,
        resource=None,
        tag="apikeys",
    ),
    Route(
        op="apikey.delete",
        method="DELETE",
        path="/apikeys/{name}",
        summary="Delete a key; it stops working in every process within a second",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="apikey.delete",
        status=204,
        resource=None,
        tag="apikeys",
    ),
    Route(
        op="apikey.rotate",
        method="POST",
        path="/apikeys/{name}/rotate",
        summary="Replace a key's secret",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="apikey.rotate",
        body=KeyRotate,
        answer=ApiKeyWithSecret,
        resource=None,
        tag="apikeys",
    ),
)
