"""What the HTTP layer needs of a door.

Zenith has one that knows keys and rates (:class:`nova.security.guards.Door`); a plane behind zenith has one that believes what
zenith signed (:class:`nova.security.service_door.ServiceDoor`).
"""

from typing import Protocol

from nova.domain.identity import Scope
from nova.security.guards import Caller, Headers
from nova.security.limits import Bucket


class Guard(Protocol):
    """``Door`` says what each of them raises."""

    def identify(self, headers: Headers, peer: str | None, *, lenient: bool = False) -> Caller: ...

    def identify_if_possible(self, headers: Headers, peer: str | None) -> Caller: ...

    def scope(self, caller: Caller, tenant: str | None, namespace: str | None) -> Scope: ...

    def check_tenant(self, caller: Caller) -> None: ...

    def authorize(self, caller: Caller, permission: str, function: str | None, *, platform: bool = False) -> None: ...

    def authorize_somewhere(self, caller: Caller, permission: str) -> None: ...

    def charge(self, caller: Caller, scope: Scope) -> Bucket | None: ...

    def client_address(self, headers: Headers, peer: str | None) -> str | None: ...

    def allows_origin(self, origin: bytes) -> bool: ...
