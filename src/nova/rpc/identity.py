"""For whom an RPC acts: its assertion, and whether the scope beside it agrees."""

from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.rpc.transport import IDENTITY, NAMESPACE, TENANT, Context, metadata_of
from nova.security.assertion import AssertedCaller, Assertions


def agreed(
    assertions: Assertions, identity: str, tenant: str | None, namespace: str | None
) -> tuple[AssertedCaller, Scope]:
    """The asserted caller and scope. Raises ``unauthenticated``, ``scope_required``, or ``scope_forbidden`` when they differ."""
    if not identity:
        raise NovaError("unauthenticated", "the call carries no identity assertion")
    caller = assertions.caller(identity)
    scope = caller.asserted
    if scope is None:
        raise NovaError("scope_required", "the identity assertion names no scope")
    if (tenant and tenant != scope.tenant) or (namespace and namespace != scope.namespace):
        raise NovaError("scope_forbidden", "the call names another scope than its assertion")
    return caller, scope


def of(context: Context, assertions: Assertions) -> tuple[AssertedCaller, Scope]:
    """The same from an RPC's metadata."""
    values = metadata_of(context)
    return agreed(assertions, values.get(IDENTITY, ""), values.get(TENANT), values.get(NAMESPACE))
