"""Where a request acts: headers select among the scopes that the identity holds, and a suspended tenant is shut."""

from collections.abc import Iterable, Mapping

from nova.domain.identity import DEFAULT_NAMESPACE, Identity, Scope
from nova.domain.names import is_scope
from nova.errors import NovaError
from nova.store.listen import Channel, Listener
from nova.store.mirror import Mirror
from nova.store.tenants import TenantState, TenantStore


class Directory:
    """Every tenant and namespace, in memory."""

    def __init__(self, store: TenantStore, listener: Listener) -> None:
        self._store = store
        self._tenants: Mapping[str, TenantState] = {}
        self._mirror = Mirror("tenants", listener, Channel.TENANTS, self._refresh)

    async def start(self) -> None:
        await self._mirror.start()

    async def close(self) -> None:
        await self._mirror.close()

    async def changed(self, tenant: str) -> None:
        """Read again after a change made here."""
        await self._mirror.changed(tenant)

    def tier(self, tenant: str) -> str | None:
        state = self._tenants.get(tenant)
        return state.tier if state else None

    async def _refresh(self, _changed: frozenset[str] | None) -> None:
        self._tenants = await self._store.directory()

    def select(self, identity: Identity, tenant: str | None, namespace: str | None) -> Scope:
        """The scope a request asks for, or the identity's own when it asks for none.

        Raises ``scope_invalid`` for a bad name, ``scope_required`` when there is no obvious scope, ``scope_forbidden`` for what
        the identity does not hold (whether or not it exists), ``tenant_suspended``, and ``not_found`` for what it does hold
        and is not there.
        """
        if tenant is None and namespace is None:
            if identity.default_scope is None:
                raise NovaError("scope_required", "name the scope in X-Nova-Tenant and X-Nova-Namespace")
            return self._open(identity.default_scope)
        own = identity.default_scope
        if tenant is None:
            if own is None and len(identity.tenants) != 1:
                raise NovaError("scope_required", "name the tenant in X-Nova-Tenant")
            tenant = own.tenant if own is not None else next(iter(identity.tenants))
        elif not is_scope(tenant):
            raise NovaError("scope_invalid", "the tenant's name is not valid")
        if namespace is None:
            namespace = own.namespace if own is not None and own.tenant == tenant else DEFAULT_NAMESPACE
        elif not is_scope(namespace):
            raise NovaError("scope_invalid", "the namespace's name is not valid")
        if identity.tenants and tenant not in identity.tenants:
            raise NovaError("scope_forbidden", f"you may not act in tenant {tenant!r}")
        if identity.namespaces and namespace not in identity.namespaces:
            raise NovaError("scope_forbidden", f"you may not act in namespace {namespace!r}")
        return self._open(Scope(tenant, namespace))

    def check_open(self, tenants: Iterable[str]) -> None:
        """Raise ``tenant_suspended`` when one of these is."""
        for tenant in tenants:
            state = self._tenants.get(tenant)
            if state is None or state.status == "suspended":
                raise NovaError("tenant_suspended", f"tenant {tenant!r} is suspended")

    def _open(self, scope: Scope) -> Scope:
        state = self._tenants.get(scope.tenant)
        if state is None:
            raise NovaError("not_found", f"tenant {scope.tenant!r} does not exist")
        if state.status == "suspended":
            raise NovaError("tenant_suspended", f"tenant {scope.tenant!r} is suspended")
        if scope.namespace not in state.namespaces:
            raise NovaError("not_found", f"namespace {scope.namespace!r} of tenant {scope.tenant!r} does not exist")
        return scope
