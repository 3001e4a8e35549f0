"""What a schedule may call: functions and workflows, who may have them called, and which versions of them there are."""

from nova.domain.identity import Identity, Scope
from nova.domain.names import LATEST, LIVE
from nova.errors import invalid, not_found
from nova.security import access
from nova.store.db import Connection
from nova.store.functions import FunctionRecord, FunctionStore
from nova.store.schedules import Target, TargetType
from nova.store.versions import VersionStore
from nova.store.workflows import WorkflowStore

_PERMISSIONS = {
    "function": {"read": "function:read", "call": "function:invoke"},
    "workflow": {"read": "workflow:read", "call": "workflow:invoke"},
}


def may_read(identity: Identity, target: Target) -> bool:
    """Whoever may not read the target does not know of its schedules."""
    return access.allowed(identity, _PERMISSIONS[target.type]["read"], named(target.type, target.name))


def require_call(identity: Identity, kind: TargetType, name: str) -> None:
    """Raises ``forbidden`` unless ``identity`` may call it: a schedule acts for whoever made it."""
    access.require(identity, _PERMISSIONS[kind]["call"], named(kind, name))


def named(kind: TargetType, name: str) -> str | None:
    """As permissions are checked: they can be limited to functions."""
    return name if kind == "function" else None


class Targets:
    def __init__(self, functions: FunctionStore, versions: VersionStore, workflows: WorkflowStore) -> None:
        self._functions = functions
        self._versions = versions
        self._workflows = workflows

    async def exists(self, scope: Scope, kind: TargetType, name: str) -> bool:
        if kind == "workflow":
            return await self._workflows.get(scope, name) is not None
        return await self._functions.lookup(scope, name) is not None

    async def lock(self, conn: Connection, scope: Scope, kind: TargetType, name: str, qualifier: str | None) -> Target:
        """The target, which nobody deletes before the transaction ends.

        Raises ``not_found``, or ``validation_failed`` when it has no such version.
        """
        if kind == "workflow":
            workflow = await self._workflows.lock(conn, scope, name)
            if workflow is None:
                raise not_found("workflow", name)
            await self._check_version(conn, workflow.id, name, qualifier)
            return Target("workflow", workflow.id, name)
        function = await self._functions.lock(conn, scope, name)
        if function is None:
            raise not_found("function", name)
        await self._check_qualifier(conn, function, qualifier)
        return Target("function", function.id, name)

    async def check(self, conn: Connection, scope: Scope, target: Target, qualifier: str | None) -> None:
        """As :meth:`lock`, for a target that is known; does not lock it."""
        if target.type == "workflow":
            await self._check_version(conn, target.id, target.name, qualifier)
            return
        function = await self._functions.lookup(scope, target.name, conn)
        if function is None:
            raise not_found("function", target.name)
        await self._check_qualifier(conn, function, qualifier)

    async def _check_version(self, conn: Connection, workflow_id: str, name: str, qualifier: str | None) -> None:
        if qualifier is None or qualifier == LIVE:
            return
        if await self._workflows.version(workflow_id, int(qualifier), conn) is None:
            raise invalid("qualifier", f"workflow {name!r} has no version {qualifier}")

    async def _check_qualifier(self, conn: Connection, function: FunctionRecord, qualifier: str | None) -> None:
        if qualifier is None or qualifier in (LIVE, LATEST) or qualifier in function.aliases:
            return
        if not qualifier.isdigit() or await self._versions.version(function.id, int(qualifier), conn) is None:
            raise invalid("qualifier", f"function {function.name!r} has no version or alias {qualifier!r}")
