"""Who calls, where they act, and what they may do."""

from dataclasses import dataclass, field
from typing import Literal

DEFAULT_TENANT = "default"
DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class Scope:
    tenant: str = DEFAULT_TENANT
    namespace: str = DEFAULT_NAMESPACE


@dataclass(frozen=True, slots=True)
class Grant:
    """One row of permission: codes (``*`` = all) on function names (globs, empty = all), allowed or denied."""

    permissions: frozenset[str]
    functions: tuple[str, ...] = ()
    effect: Literal["allow", "deny"] = "allow"


@dataclass(frozen=True, slots=True)
class Identity:
    """A proven caller.

    ``subject`` is ``operator`` (the local operator), ``key:<name>`` or ``service:<plane>``. ``tenants`` empty means every
    tenant (the platform's own identities); ``namespaces`` empty means every namespace of the tenants.
    """

    subject: str
    tenants: frozenset[str]
    namespaces: frozenset[str] = frozenset()
    grants: tuple[Grant, ...] = ()
    platform: bool = False
    tier: str | None = None
    default_scope: Scope = field(default_factory=Scope)
