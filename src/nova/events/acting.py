"""In whose name work is done that was accepted earlier: its maker's, in its scope, and only to call functions."""

from functools import lru_cache

from nova.domain.identity import Grant, Identity, Scope

_MAY_INVOKE = Grant(frozenset({"function:invoke"}))


@lru_cache(maxsize=1024)
def acting_for(subject: str, scope: Scope) -> Identity:
    """One object for much work: what is signed of it is remembered by the object."""
    return Identity(
        subject=subject,
        tenants=frozenset({scope.tenant}),
        namespaces=frozenset({scope.namespace}),
        grants=(_MAY_INVOKE,),
        default_scope=scope,
    )
