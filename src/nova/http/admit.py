"""Admission of a request to an operation: who, where, may they, how fast; with the audit row of a refusal before its answer.

The same code for an operation that this process answers and for one that it hands to another plane.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nova.api.table import BY_HANDLER, Route
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.http.exchange import Exchange
from nova.http.guard import Guard
from nova.http.routing import fill
from nova.http.trail import Trail
from nova.security.guards import Caller


@dataclass(frozen=True, slots=True)
class Admission:
    """The door, and the trail that its refusals leave."""

    door: Guard
    trail: Trail

    async def admit(self, route: Route, exchange: Exchange, params: Mapping[str, str]) -> tuple[Caller, Scope]:
        """Let the request in, or raise what the door raised. Headers about rates are added to the answer.

        A public route lets everyone in; its caller is whoever they can prove to be.
        """
        if route.permission is None:
            caller = self.door.identify_if_possible(exchange.headers, exchange.peer)
            return caller, caller.identity.default_scope or Scope()
        try:
            caller = self.door.identify(exchange.headers, exchange.peer)
        except NovaError as exc:
            await self.trail.refused_login(exchange.headers, exchange.peer, route.op, exchange.request_id, exc)
            raise
        scope = caller.identity.default_scope or Scope()
        try:
            if route.scoped:
                scope = self.door.scope(caller, exchange.header(b"x-nova-tenant"), exchange.header(b"x-nova-namespace"))
            else:
                self.door.check_tenant(caller)
            self._authorize(route, route.permission, caller, params)
        except NovaError as exc:
            await self.trail.denied(caller, scope, route.op, fill(route.path, params), exchange.request_id, exc)
            raise
        bucket = self.door.charge(caller, scope)
        if bucket is not None:
            exchange.extra += bucket.headers()
        return caller, scope

    def _authorize(self, route: Route, permission: str, caller: Caller, params: Mapping[str, str]) -> None:
        if route.resource == BY_HANDLER:
            self.door.authorize_somewhere(caller, permission)
            return
        about_function = route.resource is not None and route.path.startswith("/functions/{")
        function = params.get(route.resource) if about_function and route.resource else None
        self.door.authorize(caller, permission, function, platform=route.platform)
