"""The door: every request passes it before anything is done for it, and all its answers come from memory.

In this order: draining → failures per address → who → where → may they → how fast. What depends on the function that is
called (its existence, limits, queue) is asked behind the door.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import urlsplit

from nova.clock import Clock
from nova.config import AuthSettings, HttpSettings
from nova.domain.identity import ANONYMOUS, Identity, Scope
from nova.errors import NovaError, draining
from nova.security import access
from nova.security.identity import OPERATOR, KeyRing, credential, networks, parse_address, within
from nova.security.limits import Bucket, FailureLimiter, RateLimiter
from nova.security.scope import Directory

Headers = Mapping[bytes, bytes]
"""Request headers by lower-case name; of a repeated one, the last."""
_CACHE = 4096


class DoorEvents(Protocol):
    """Who wants to know what the door refuses (metrics). Must not block or raise."""

    def auth_failed(self, reason: str) -> None: ...

    def rate_limited(self, tenant: str) -> None: ...


class NoEvents:
    def auth_failed(self, reason: str) -> None:
        pass

    def rate_limited(self, tenant: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Caller:
    """Who knocks, and from which address (the client's own, behind trusted proxies)."""

    identity: Identity
    address: str | None


class Door:
    """The guards that every entry point shares."""

    def __init__(
        self,
        auth: AuthSettings,
        http: HttpSettings,
        keys: KeyRing,
        directory: Directory,
        limiter: RateLimiter,
        clock: Clock,
        *,
        events: DoorEvents | None = None,
    ) -> None:
        self._events = events or NoEvents()
        self._mode: Literal["auto", "true", "false"] = auth.enabled
        self._keys = keys
        self._directory = directory
        self._limiter = limiter
        self._failures = FailureLimiter(clock)
        self._origins = frozenset(origin.rstrip("/").encode().lower() for origin in http.cors_origins)
        self._proxies = networks(http.trusted_proxies)
        self._loopback: dict[tuple[str | None, bytes | None], bool] = {}
        self.draining = False
        """Set at shutdown: requests that need a caller are refused with ``draining``, probes are still answered."""

    def identify(self, headers: Headers, peer: str | None, *, lenient: bool = False) -> Caller:
        """Who this is. Raises ``draining``, ``rate_limited``, ``unauthenticated`` or ``ip_denied``.

        ``lenient``: an Authorization header that is not an API key is not for us.
        """
        if self.draining:
            raise draining()
        address = self.client_address(headers, peer)
        try:
            self._failures.check(address or "")
            key = credential(headers, lenient=lenient)
            if key is not None:
                return Caller(self._keys.prove(key, address), address)
        except NovaError as exc:
            self._events.auth_failed(exc.code)
            if exc.code == "unauthenticated":
                self._failures.failed(address or "")
            raise
        if self._mode != "true" and self._needs_no_proof(headers, peer):
            return Caller(OPERATOR, address)
        raise NovaError("unauthenticated", "send an API key in X-API-Key or Authorization: ApiKey")

    def identify_again(self, caller: Caller) -> bool:
        """Whether what :meth:`identify` said still holds when the same head comes again on the same connection.

        Only for callers who needed no proof, for which head, peer and settings that do not change were asked; a credential
        is proven each time. False: ask :meth:`identify`.
        """
        if caller.identity is not OPERATOR or self.draining:
            return False
        try:
            self._failures.check(caller.address or "")
        except NovaError:
            return False
        return True

    def identify_if_possible(self, headers: Headers, peer: str | None) -> Caller:
        """For public routes, which show more to some: the caller, or :data:`ANONYMOUS`."""
        try:
            return self.identify(headers, peer)
        except NovaError:
            return Caller(ANONYMOUS, self.client_address(headers, peer))

    def scope(self, caller: Caller, tenant: str | None, namespace: str | None) -> Scope:
        """Where the request acts; see :meth:`Directory.select`."""
        return self._directory.select(caller.identity, tenant, namespace)

    def check_tenant(self, caller: Caller) -> None:
        """For routes outside any namespace: raise ``tenant_suspended`` for callers of a suspended tenant."""
        if not caller.identity.platform:
            self._directory.check_open(caller.identity.tenants)

    def authorize(self, caller: Caller, permission: str, function: str | None, *, platform: bool = False) -> None:
        """Raise ``forbidden`` unless the caller holds the permission on this function (None: on no function).

        ``platform``: only for those who stand above tenants.
        """
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
        """Take one token from the caller's bucket; None while rates are not limited. Raises ``rate_limited``."""
        if not self._limiter.enabled:
            return None
        identity = caller.identity
        tenant = scope.tenant if identity.platform or not identity.tenants else next(iter(identity.tenants))
        try:
            return self._limiter.charge(f"{tenant}/{identity.subject}", identity.tier or self._directory.tier(tenant))
        except NovaError:
            self._events.rate_limited(tenant)
            raise

    def client_address(self, headers: Headers, peer: str | None) -> str | None:
        """The socket's peer; or, when that is a trusted proxy, the last address before the trusted ones."""
        if not self.trusts(peer):
            return peer
        for hop in reversed(_forwarded_for(headers)):
            parsed = parse_address(hop)
            if parsed is None:
                break
            if not within(hop, self._proxies):
                return str(parsed)
        return peer

    def trusts(self, peer: str | None) -> bool:
        """Is this peer a proxy whose forwarding headers count?"""
        return bool(self._proxies) and within(peer, self._proxies)

    def allows_origin(self, origin: bytes) -> bool:
        """May pages of this origin read answers (``http.cors_origins``)?"""
        return origin.lower() in self._origins

    def _needs_no_proof(self, headers: Headers, peer: str | None) -> bool:
        """auto: the local operator, certainly. false: everyone, but not a stranger's page in the operator's browser."""
        host = headers.get(b"host")
        origin = headers.get(b"origin")
        if origin is not None and not _same_origin(origin, host) and origin.lower() not in self._origins:
            return False
        local_peer, local_host = self._is_local(peer, None), self._is_local(None, host)
        if self._mode == "false":
            return local_host or not local_peer or _forwarded(headers)
        return local_peer and local_host and not _forwarded(headers)

    def _is_local(self, peer: str | None, host: bytes | None) -> bool:
        key = (peer, host)
        known = self._loopback.get(key)
        if known is None:
            if len(self._loopback) >= _CACHE:
                self._loopback.clear()
            known = self._loopback[key] = _loopback_peer(peer) if host is None else _loopback_host(host)
        return known


def _loopback_peer(peer: str | None) -> bool:
    address = parse_address(peer)
    return address is not None and address.is_loopback


def _loopback_host(host: bytes) -> bool:
    try:
        name = urlsplit(f"//{host.decode('ascii')}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or name.endswith(".localhost") or _loopback_peer(name)


def _same_origin(origin: bytes, host: bytes | None) -> bool:
    _, separator, authority = origin.lower().partition(b"://")
    return bool(separator) and host is not None and authority == host.lower()


def _forwarded(headers: Headers) -> bool:
    """Did the request come through a proxy?"""
    if b"forwarded" in headers or b"via" in headers or b"x-real-ip" in headers:
        return True
    # a generator costs more than the loop, and every call comes through here
    for name in headers:  # noqa: SIM110
        if name.startswith(b"x-forwarded"):
            return True
    return False


def _forwarded_for(headers: Headers) -> list[str]:
    """The addresses that proxies wrote down, the client's claim first."""
    if (value := headers.get(b"x-forwarded-for")) is not None:
        return [part.strip() for part in value.decode("latin-1").split(",")]
    hops = []
    for element in headers.get(b"forwarded", b"").decode("latin-1").split(","):
        for pair in element.split(";"):
            name, _, value_text = pair.strip().partition("=")
            if name.lower() == "for":
                hops.append(_bare(value_text.strip('"')))
    return hops


def _bare(node: str) -> str:
    """``192.0.2.1:80`` or ``[2001:db8::1]:80`` without the port."""
    if node.startswith("["):
        return node[1:].partition("]")[0]
    return node.rpartition(":")[0] if node.count(":") == 1 else node
