"""Operations that another plane answers: admitted at this door, then handed on with who was admitted.

The route table's plane column says who gets what; see :func:`forwarding`.
"""

from collections.abc import Iterable, Mapping

from starlette.types import ASGIApp, Message

from nova.api.table import Kind, Plane, Route
from nova.config import LimitSettings
from nova.errors import NovaError
from nova.http.admit import Admission
from nova.http.bind import Endpoint
from nova.http.body import limited
from nova.http.exchange import Exchange, HeaderList
from nova.http.guard import Guard
from nova.http.operation import body_limit
from nova.http.proxy import onward
from nova.http.trail import Trail
from nova.payload import too_large
from nova.security.assertion import ADMITTED
from nova.store.audit import AuditStore

_OURS = (b"access-control-", b"x-ratelimit-")


class Forwarding:
    """One operation that ``target`` answers. A request is let in here exactly as if it were answered here."""

    def __init__(self, route: Route, target: ASGIApp, admission: Admission, limits: LimitSettings) -> None:
        self._route = route
        self._target = target
        self._admission = admission
        self._limits = limits

    async def __call__(self, exchange: Exchange, params: Mapping[str, str]) -> None:
        caller, place = await self._admission.admit(self._route, exchange, params)
        limit = self._limit()
        declared = exchange.headers.get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > limit:
            raise too_large(limit)
        scope = {**exchange.scope, "headers": onward(exchange.scope["headers"])}
        scope[ADMITTED] = (caller, place if self._route.scoped else None)

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _theirs(message.get("headers", []), exchange.extra)
            await exchange.send(message)

        await self._target(scope, limited(exchange.receive, limit), send)

    def _limit(self) -> int:
        """Bytes that may come through; the plane itself may take less."""
        limit = body_limit(self._route, self._limits)
        return limit if self._route.kind is Kind.UPLOAD else max(limit, self._limits.body_mb << 20)


def forwarding(
    table: Iterable[Route],
    targets: Mapping[Plane, ASGIApp],
    *,
    here: Iterable[str],
    door: Guard,
    audit: AuditStore,
    limits: LimitSettings,
) -> dict[str, Endpoint]:
    """For :func:`nova.http.bind.bind`: every operation of ``table`` that is not answered ``here``, by its plane.

    ``targets`` are ASGI callables that carry a request to a plane: ``Comets.proxy``, :class:`nova.http.proxy.HttpProxy`.
    What belongs to observability goes to control when there is no such target. Raises RuntimeError for an operation whose
    plane has none.
    """
    admission = Admission(door, Trail(audit, door))
    ours = frozenset(here)
    endpoints: dict[str, Endpoint] = {}
    for row in table:
        if row.op in ours:
            continue
        target = targets.get(row.plane)
        if target is None and row.plane is Plane.OBSERVABILITY:
            target = targets.get(Plane.CONTROL)
        if target is None:
            raise RuntimeError(f"no plane to forward {row.op} to")
        endpoints[row.op] = Forwarding(row, target, admission, limits)
    return endpoints


def carried(
    table: Iterable[Route], targets: Mapping[str, ASGIApp], *, door: Guard, audit: AuditStore, limits: LimitSettings
) -> dict[str, Endpoint]:
    """The same for single operations: ``targets`` by operation."""
    admission = Admission(door, Trail(audit, door))
    return {row.op: Forwarding(row, targets[row.op], admission, limits) for row in table if row.op in targets}


async def absent(scope: object, receive: object, send: object) -> None:
    """A target for a plane whose address is not known. Raises ``dependency_unavailable``."""
    raise NovaError("dependency_unavailable", "the plane that answers this is not there", retry_after_s=1)


def _theirs(headers: HeaderList, ours: HeaderList) -> HeaderList:
    """The plane's headers without those that this door sets itself."""
    names = {name for name, _ in ours if name != b"vary"}
    return [pair for pair in headers if pair[0] not in names and not pair[0].startswith(_OURS)]
