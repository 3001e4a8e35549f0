"""Who may do what: permission codes, the roles that bundle them, and the decision.

A permission is checked for the route that matched and the function it names, never for text in a path. A deny beats every
allow; a grant that is limited to some functions says nothing about routes that do not name one.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from nova.domain.identity import Grant, Identity
from nova.errors import NovaError

ALL = "*"
PLATFORM_ADMIN = "platform-admin"

_READ = {
    "function:read",
    "code:read",
    "build:read",
    "log:read",
    "metrics:read",
    "runtime:read",
    "docs:read",
    "async:read",
    "snapshot:read",
    "layer:read",
    "volume:read",
    "event:read",
    "workflow:read",
    "trigger:read",
}
_RUN = _READ | {
    "function:invoke",
    "function:update",
    "build:manage",
    "payload:read",
    "tenant:read",
    "async:manage",
    "schedule:manage",
    "state:read",
    "state:write",
    "snapshot:write",
    "event:publish",
    "event:manage",
    "workflow:invoke",
    "workflow:approve",
    "trigger:manage",
}
_DEVELOP = _RUN | {"function:create", "function:delete", "layer:write", "volume:write", "workflow:manage"}
_ADMIN = _DEVELOP | {"apikey:manage", "tenant:manage"}
_PLATFORM = {"config:read", "config:write", "cluster:read", "cluster:manage"}

ROLES: Mapping[str, frozenset[str]] = {
    "viewer": frozenset(_READ),
    "invoker": frozenset({"function:invoke"}),
    "developer": frozenset(_DEVELOP),
    "operator": frozenset(_RUN),
    "admin": frozenset(_ADMIN),
    PLATFORM_ADMIN: frozenset({ALL}),
}
"""The built-in roles; ``platform-admin`` is the only one that reaches beyond its tenant."""

PERMISSIONS: frozenset[str] = frozenset(_ADMIN | _PLATFORM)
"""Every code that some route asks for."""


def grant(role: str, functions: Iterable[str] = (), effect: str = "allow") -> Grant:
    """One row of a key's permissions as a grant. Raises KeyError for an unknown role."""
    return Grant(ROLES[role], tuple(functions), "deny" if effect == "deny" else "allow")


def allowed(identity: Identity, permission: str, function: str | None) -> bool:
    """May ``identity`` do this to ``function`` (None: to something that is not a function)?"""
    granted = False
    for row in identity.grants:
        if permission not in row.permissions and ALL not in row.permissions:
            continue
        if row.functions and not _names(row.functions, function):
            continue
        if row.effect == "deny":
            return False
        granted = True
    return granted


def allowed_somewhere(identity: Identity, permission: str) -> bool:
    """May ``identity`` do this to some function at least? Whoever asks this looks at the function later."""
    held = False
    for row in identity.grants:
        if permission in row.permissions or ALL in row.permissions:
            if row.effect == "deny" and not row.functions:
                return False
            held = held or row.effect == "allow"
    return held


def require(identity: Identity, permission: str, function: str | None) -> None:
    """Raise ``forbidden`` unless :func:`allowed`."""
    if not allowed(identity, permission, function):
        where = f" on function {function!r}" if function is not None else ""
        raise NovaError("forbidden", f"this needs {permission}{where}")


def exceeds(holder: Identity, wanted: Iterable[Grant]) -> str | None:
    """Why ``holder`` may not give these grants away, or None: nobody gives more than they hold."""
    rows = list(wanted)
    for row in rows:
        if row.effect == "allow" and (reason := _beyond(holder, row, rows)):
            return reason
    return None


def _beyond(holder: Identity, row: Grant, together: list[Grant]) -> str | None:
    for code in sorted(row.permissions):
        for pattern in row.functions or (None,):
            if not any(_holds(own, code, pattern) for own in holder.grants if own.effect == "allow"):
                return f"you do not hold {code} on " + (repr(pattern) if pattern else "every function")
            for own in holder.grants:
                if own.effect == "deny" and _touches(own, code, pattern) and not _kept(own, code, together):
                    return f"{code} is denied to you on some of these functions"
    return None


def _holds(own: Grant, code: str, pattern: str | None) -> bool:
    if code not in own.permissions and ALL not in own.permissions:
        return False
    return not own.functions or (pattern is not None and any(_within(pattern, wider) for wider in own.functions))


def _within(pattern: str, wider: str) -> bool:
    """Is everything that ``pattern`` matches also matched by ``wider``? (Says no when it cannot tell.)"""
    return pattern == wider or ("?" not in wider and fnmatchcase(pattern.replace("?", "x"), wider))


def _touches(denied: Grant, code: str, pattern: str | None) -> bool:
    """Might the denial concern something that ``pattern`` (None: every function) matches? Says yes when it cannot tell."""
    if code not in denied.permissions and ALL not in denied.permissions and code != ALL:
        return False
    if not denied.functions or pattern is None or "*" in pattern or "?" in pattern:
        return True
    return any(fnmatchcase(pattern, forbidden) for forbidden in denied.functions)


def _kept(denied: Grant, code: str, together: list[Grant]) -> bool:
    return any(
        row.effect == "deny"
        and code in row.permissions
        and (not row.functions or set(denied.functions) <= set(row.functions))
        for row in together
    )


def _names(patterns: tuple[str, ...], function: str | None) -> bool:
    return function is not None and any(fnmatchcase(function, pattern) for pattern in patterns)
