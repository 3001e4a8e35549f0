"""Who a call is for, as one plane tells another: the caller that the door has proven, signed with the service token.

A plane behind the door believes nothing else. An assertion lives a minute; making and checking one costs a HMAC and some JSON, so
both sides remember those they have seen.
"""

import hmac
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jwt

from nova.clock import Clock
from nova.domain.identity import ANONYMOUS, Grant, Identity, Scope
from nova.errors import NovaError
from nova.security.guards import Caller
from nova.security.identity import OPERATOR
from nova.security.service import ServiceToken

HEADER = b"x-nova-identity"
ADMITTED = "nova.admitted"
"""Key of the ASGI scope under which a door that forwards a request leaves what to sign: ``(Caller, Scope | None)``."""
LIFE_S = 60
SIGN_AGAIN_S = 30
SKEW_S = 30
"""How far the clocks of two hosts may be apart."""
_REMEMBERED = 4096
_PURPOSE = b"nova identity assertion 1"
_ALGORITHM = "HS256"
_KNOWN = (OPERATOR, ANONYMOUS)


@dataclass(frozen=True, slots=True)
class AssertedCaller(Caller):
    """A caller whom another plane's door has proven. ``asserted`` is where the door let them act, if anywhere."""

    asserted: Scope | None = None


class Assertions:
    """Signs and verifies for one process."""

    def __init__(self, token: ServiceToken, clock: Clock) -> None:
        self._key = hmac.digest(token.value, _PURPOSE, "sha256")
        self._clock = clock
        self._signed: OrderedDict[tuple[int, Scope | None, str | None], tuple[float, Identity, str]] = OrderedDict()
        self._seen: OrderedDict[str | bytes, tuple[float, float, AssertedCaller]] = OrderedDict()

    def sign(self, caller: Caller, scope: Scope | None) -> str:
        """An assertion for this caller, at most :data:`SIGN_AGAIN_S` seconds old; visible ASCII."""
        identity = caller.identity
        key = (id(identity), scope, caller.address)
        now = self._clock.unix()
        known = self._signed.get(key)
        # the entry holds the identity, so that its id cannot become another one's; a clock that was set back is noticed
        if known is not None and 0 <= now - known[0] < SIGN_AGAIN_S:
            return known[2]
        issued = int(now)
        claims = _claims(caller, scope) | {"iat": issued, "exp": issued + LIFE_S}
        text = jwt.encode(claims, self._key, algorithm=_ALGORITHM)
        _remember(self._signed, key, (now, identity, text))
        return text

    def verify(self, text: str | bytes) -> tuple[Caller, Scope | None]:
        """Who is asserted, and where they may act. Raises ``unauthenticated``."""
        caller = self.caller(text)
        return caller, caller.asserted

    def caller(self, text: str | bytes) -> AssertedCaller:
        """The same in one object. Raises ``unauthenticated``."""
        now = self._clock.unix()
        known = self._seen.get(text)
        if known is None:
            known = self._decode(text)
            _remember(self._seen, text, known)
        issued, expires, caller = known
        if not issued - SKEW_S <= now < expires + SKEW_S:
            raise NovaError("unauthenticated", "the identity assertion has expired")
        return caller

    def _decode(self, text: str | bytes) -> tuple[float, float, AssertedCaller]:
        options: Any = {"require": ["sub", "iat", "exp"], "verify_iat": False, "verify_exp": False}
        try:
            claims = jwt.decode(text, self._key, algorithms=[_ALGORITHM], options=options)
            issued, expires = float(claims["iat"]), float(claims["exp"])
            if expires - issued > LIFE_S:
                raise ValueError("it lives too long")
            return issued, expires, _caller(claims)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError) as exc:
            raise NovaError("unauthenticated", "the identity assertion is not valid") from exc


def _remember(entries: OrderedDict[Any, Any], key: object, value: object) -> None:
    entries[key] = value
    if len(entries) > _REMEMBERED:
        entries.popitem(last=False)


def _claims(caller: Caller, scope: Scope | None) -> dict[str, Any]:
    identity = caller.identity
    claims: dict[str, Any] = {
        "sub": identity.subject,
        "tenants": sorted(identity.tenants),
        "namespaces": sorted(identity.namespaces),
        "grants": [[sorted(row.permissions), list(row.functions), row.effect] for row in identity.grants],
        "platform": identity.platform,
        "tier": identity.tier,
        "default_scope": _pair(identity.default_scope),
        "scope": _pair(scope),
        "address": caller.address,
    }
    return {name: value for name, value in claims.items() if value not in (None, [], False)}


def _caller(claims: dict[str, Any]) -> AssertedCaller:
    identity = Identity(
        subject=claims["sub"],
        tenants=frozenset(claims.get("tenants", ())),
        namespaces=frozenset(claims.get("namespaces", ())),
        grants=tuple(_grants(claims.get("grants", ()))),
        platform=bool(claims.get("platform", False)),
        tier=claims.get("tier"),
        default_scope=_scope(claims.get("default_scope")),
    )
    for known in _KNOWN:
        if identity == known:
            identity = known
    return AssertedCaller(identity, claims.get("address"), _scope(claims.get("scope")))


def _grants(rows: Iterable[Any]) -> Iterable[Grant]:
    for permissions, functions, effect in rows:
        if effect not in ("allow", "deny"):
            raise ValueError("unknown effect")
        yield Grant(frozenset(permissions), tuple(functions), effect)


def _pair(scope: Scope | None) -> list[str] | None:
    return None if scope is None else [scope.tenant, scope.namespace]


def _scope(pair: Any) -> Scope | None:
    if pair is None:
        return None
    tenant, namespace = pair
    return Scope(str(tenant), str(namespace))
