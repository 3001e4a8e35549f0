"""The route table and the planes' handlers, made into one ASGI application.

Start-up fails on an operation without a handler, with two, or on a handler without an operation; so whatever is in the table
works, and whatever works is in the table.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

import structlog
from starlette.types import Receive, Scope, Send

from nova.api.table import Route
from nova.config import LimitSettings
from nova.errors import NovaError, as_refusal, internal
from nova.http import cors
from nova.http.admit import Admission
from nova.http.body import ClientGone
from nova.http.exchange import Exchange
from nova.http.guard import Guard
from nova.http.handler import Handler, handlers_of
from nova.http.operation import Operation, Shared
from nova.http.routing import Router, without_prefix
from nova.http.trail import Trail
from nova.security.access import PERMISSIONS
from nova.store.audit import AuditStore

log = structlog.get_logger(__name__)


class Endpoint(Protocol):
    """What answers a request that a route matched. Refusals are raised."""

    async def __call__(self, exchange: Exchange, params: Mapping[str, str]) -> None: ...


def bind(
    table: Iterable[Route],
    owners: Iterable[object],
    *,
    door: Guard,
    audit: AuditStore,
    limits: LimitSettings,
    elsewhere: Iterable[str] = (),
    endpoints: Mapping[str, Endpoint] | None = None,
) -> "Application":
    """The application that answers every operation of ``table`` with the handlers that ``owners`` have.

    ``elsewhere`` are operations that an outer layer answers, ``endpoints`` those that have no handler here because another
    process answers them. Raises RuntimeError when table and handlers do not fit.
    """
    rows = list(table)
    handlers = _collect(owners)
    shared = Shared(Admission(door, Trail(audit, door)), limits)
    outer, remote = frozenset(elsewhere), dict(endpoints or {})
    operations = [row for row in rows if row.op not in outer and row.op not in remote]
    if missing := sorted({row.op for row in operations} - handlers.keys()):
        raise RuntimeError(f"operations without a handler: {', '.join(missing)}")
    if surplus := sorted(handlers.keys() - {row.op for row in operations}):
        raise RuntimeError(f"handlers without an operation: {', '.join(surplus)}")
    if len({row.op for row in rows}) != len(rows):
        raise RuntimeError("an operation is in the table twice")
    if unknown := sorted({row.permission for row in rows if row.permission} - PERMISSIONS):
        raise RuntimeError(f"permissions that no role can hold: {', '.join(unknown)}")
    router: Router[Endpoint] = Router()
    for row in rows:
        if row.op in remote:
            router.add(row.method, row.path, remote[row.op])
        elif row.op not in outer:
            router.add(row.method, row.path, Operation(row, handlers[row.op], shared, _item_path(row, rows)))
    return Application(router, door)


def _collect(owners: Iterable[object]) -> dict[str, Handler]:
    handlers: dict[str, Handler] = {}
    for owner in owners:
        for op, handler in handlers_of(owner).items():
            if op in handlers:
                raise RuntimeError(f"two handlers for {op}")
            handlers[op] = handler
    return handlers


def _item_path(row: Route, rows: list[Route]) -> str | None:
    """The path under which one thing of a collection is read."""
    prefix = f"{row.path}/{{"
    return next(
        (
            r.path
            for r in rows
            if r.method == "GET" and r.path.startswith(prefix) and r.path.count("/") == prefix.count("/")
        ),
        None,
    )


class Application:
    """ASGI: the management API."""

    def __init__(self, router: Router[Endpoint], door: Guard) -> None:
        self._router = router
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            return
        exchange = Exchange(scope, receive, send)
        try:
            await self._answer(exchange)
        except ClientGone:
            return
        except NovaError as exc:
            if exchange.started:
                raise
            await exchange.refuse(exc)
        except Exception as exc:
            log.exception("request failed", request_id=exchange.request_id, method=exchange.method)
            if exchange.started:
                raise
            await exchange.refuse(as_refusal(exc) or internal())

    async def _answer(self, exchange: Exchange) -> None:
        match = self._router.find(without_prefix(exchange.raw_path))
        if match is None:
            raise NovaError("route_not_found", "there is no such route")
        if allowed := cors.answer_headers(self._door, exchange.headers):
            exchange.extra += allowed
            if cors.is_preflight(exchange):
                await cors.preflight(exchange, match.allow)
                return
        found = match.get(exchange.method)
        if found is None:
            allow = match.allow
            raise NovaError("method_not_allowed", f"allowed here: {', '.join(allow)}", extra={"allow": allow})
        endpoint, params = found
        await endpoint(exchange, params)
