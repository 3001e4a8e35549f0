"""How a call comes in: past the door, or out again with what the trail must know."""

from msgspec import Struct

from nova.domain.identity import Scope as Place
from nova.domain.names import is_name
from nova.errors import NovaError, not_found
from nova.gateway.replying import lines_of
from nova.http.trail import Trail
from nova.security.guards import Caller, Door

PERMISSION = "function:invoke"


class Knock(Struct):
    """How far a caller came at the door."""

    caller: Caller | None = None
    place: Place | None = None
    allowed: bool = False

    def inside(self) -> tuple[Caller, Place]:
        """Who and where, behind the door."""
        assert self.caller is not None
        assert self.place is not None
        return self.caller, self.place


class Entry:
    """The door with its trail, for calls of functions."""

    def __init__(self, door: Door, trail: Trail) -> None:
        self._door = door
        self._trail = trail

    async def enter(
        self,
        headers: dict[bytes, bytes],
        peer: str | None,
        op: str,
        name: str,
        tenant: str | None,
        namespace: str | None,
        request_id: str,
        *,
        lenient: bool = False,
    ) -> tuple[Caller, Place, bytes]:
        """Pass the door; see :meth:`knock` and :meth:`denied`."""
        knock = Knock()
        try:
            extra = self.knock(knock, headers, peer, name, tenant, namespace, lenient=lenient)
        except NovaError as exc:
            await self.denied(knock, headers, peer, op, name, request_id, exc)
            raise
        return *knock.inside(), extra

    def knock(
        self,
        knock: Knock,
        headers: dict[bytes, bytes],
        peer: str | None,
        name: str,
        tenant: str | None,
        namespace: str | None,
        *,
        lenient: bool = False,
    ) -> bytes:
        """Who, where, may they, how fast. The bytes are header lines for the answer; ``knock`` says how far it came."""
        door = self._door
        caller = knock.caller
        if caller is None:
            caller = knock.caller = door.identify(headers, peer, lenient=lenient)
        knock.place = caller.identity.default_scope or Place()
        place = knock.place = door.scope(caller, tenant, namespace)
        door.authorize(caller, PERMISSION, name)
        knock.allowed = True
        bucket = door.charge(caller, place)
        if not is_name(name):
            raise not_found("function", name)
        return b"" if bucket is None else lines_of(bucket.headers())

    async def denied(
        self,
        knock: Knock,
        headers: dict[bytes, bytes],
        peer: str | None,
        op: str,
        name: str,
        request_id: str,
        exc: NovaError,
    ) -> None:
        """Refusals of a proven caller, and of a credential, leave their audit row before they are answered."""
        if knock.caller is None:
            await self._trail.refused_login(headers, peer, op, request_id, exc)
        elif not knock.allowed:
            place = knock.place or Place()
            await self._trail.denied(knock.caller, place, op, f"/functions/{name}", request_id, exc)
