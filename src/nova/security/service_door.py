"""The door of a plane that stands behind another door: it lets in what zenith has admitted, and nothing else.

The methods are those of :class:`nova.security.guards.Door`, so the same binder takes either.
"""

from collections.abc import Iterable

from nova.domain.identity import ANONYMOUS, Scope
from nova.errors import NovaError, draining
from nova.security import access
from nova.security.assertion import HEADER, AssertedCaller, Assertions
from nova.security.guards import Caller, DoorEvents, Headers, NoEvents
from nova.security.identity import OPERATOR
from nova.security.limits import Bucket
from nova.security.scope import Directory
from nova.security.service import ServiceToken


class ServiceDoor:
    """``origins`` are those of ``http.cors_origins``, whose pages may read answers."""

    def __init__(
        self,
        token: ServiceToken,
        assertions: Assertions,
        directory: Directory,
        *,
        origins: Iterable[str] = (),
        events: DoorEvents | None = None,
    ) -> None:
        self._token = token
        self._assertions = assertions
        self._directory = directory
        self._origins = frozenset(origin.rstrip("/").encode().lower() for origin in origins)
        self._events = events or NoEvents()
        self.draining = False
        """Set at shutdown: requests that need a caller are refused with ``draining``, probes are still answered."""

    def identify(self, headers: Headers, peer: str | None, *, lenient: bool = False) -> Caller:
        """Whom the front door admitted. Raises ``draining`` or ``unauthenticated``; a client's own key counts for nothing."""
        if self.draining:
            raise draining()
        try:
            return self._caller(headers)
        except NovaError as exc:
            self._events.auth_failed(exc.code)
            raise

    def identify_if_possible(self, headers: Headers, peer: str | None) -> Caller:
        """For public routes: the asserted caller, or nobody."""
        try:
            return self._caller(headers)
        except NovaError:
            return Caller(ANONYMOUS, peer)

    def scope(self, caller: Caller, tenant: str | None, namespace: str | None) -> Scope:
        """The scope in which the front door let the caller act, still open here.

        Raises ``scope_forbidden`` when the request names another one; else as :meth:`Directory.select`.
        """
        asserted = caller.asserted if isinstance(caller, AssertedCaller) else None
        if asserted is not None:
            if (tenant or asserted.tenant, namespace or asserted.namespace) != (asserted.tenant, asserted.namespace):
                raise NovaError("scope_forbidden", "the request names another scope than its assertion")
            tenant, namespace = asserted.tenant, asserted.namespace
        return self._directory.select(caller.identity, tenant, namespace)

    def check_tenant(self, caller: Caller) -> None:
        """For routes outside any namespace: raise ``tenant_suspended`` for callers of a suspended tenant."""
        if not caller.identity.platform:
            self._directory.check_open(caller.identity.tenants)

    def authorize(self, caller: Caller, permission: str, function: str | None, *, platform: bool = False) -> None:
        """Raise ``forbidden`` unless the caller holds the permission; asked again here because handlers rely on it."""
        if caller.identity is OPERATOR:
            return
        if platform and not caller.identity.platform:
            raise NovaError("forbidden", "only a platform administrator may do this")
        access.require(caller.identity, permission, function)

    def authorize_somewhere(self, caller: Caller, permission: str) -> None:
        """Raise ``forbidden`` unless the caller holds the permission on some function; which one, the handler asks."""
        if not access.allowed_somewhere(caller.identity, permission):
            raise NovaError("forbidden", f"this needs {permission}")

    def charge(self, caller: Caller, scope: Scope) -> Bucket | None:
        """None: the front door has charged the request."""
        return None

    def client_address(self, headers: Headers, peer: str | None) -> str | None:
        """The client's own address as asserted; the peer's when nothing is."""
        return self.identify_if_possible(headers, peer).address

    def trusts(self, peer: str | None) -> bool:
        """False: what a forwarding header says was weighed at the front door."""
        return False

    def allows_origin(self, origin: bytes) -> bool:
        """May pages of this origin read answers?"""
        return origin.lower() in self._origins

    def _caller(self, headers: Headers) -> AssertedCaller:
        if not self._token.proven_by(headers.get(b"authorization")):
            raise NovaError("unauthenticated", "this port takes requests from the platform's own processes only")
        text = headers.get(HEADER)
        if text is None:
            raise NovaError("unauthenticated", "the request carries no identity assertion")
        return self._assertions.caller(text)
