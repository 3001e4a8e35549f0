"""Who calls, where they act, and what they may do."""

from dataclasses import dataclass, field
from typing import Literal

from msgspec import Struct

DEFAULT_TENANT = "default"
DEFAULT_NAMESPACE = "default"


class Scope(Struct, frozen=True):
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
    """A caller: proven, or :data:`ANONYMOUS`.

    ``subject`` is ``operator`` (the local operator), ``key:<name>`` or ``service:<plane>``. ``tenants`` empty means every
    tenant (the platform's own identities); ``namespaces`` empty means every namespace of the tenants. ``default_scope`` is
    where a request without scope headers acts; None when there is no obvious one.
    """

    subject: str
    tenants: frozenset[str]
    namespaces: frozenset[str] = frozenset()
    grants: tuple[Grant, ...] = ()
    platform: bool = False
    tier: str | None = None
    default_scope: Scope | None = field(default_factory=Scope)

    @property
    def visible_tenants(self) -> frozenset[str] | None:
        """Whose numbers this caller sees; None: everybody's."""
        return None if self.platform or not self.tenants else self.tenants


ANONYMOUS = Identity("anonymous", frozenset(), default_scope=None)
"""Nobody: the caller of a public route who proved nothing. Holds no grant and no scope."""
